"""A command that runs in a process of its own, watched from outside: its seconds, and the memory of all its processes.

Memory is PSS, the proportional set size: a page that n processes share counts 1/n in each, so that the sum over a
process and those that it started counts each page once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
EVERY = 0.1  # seconds between two looks at the memory
STILL = 5.0  # Whoever looks that much later than was meant stood still with the whole machine, as a paused one does.


@dataclass(frozen=True)
class Watched:
    """What was seen of a command.

    Args:
        seconds: from its start to its end, without those in which the whole machine stood still.
        still: these.
        cpu_seconds: of all its processes, by the time they had ended.
        peak: the largest sum of PSS that was seen, in bytes.
        peak_at: seconds after its start when that was.
        processes: how many processes there were at that moment.
        output: what it printed.
    """

    seconds: float
    still: float
    cpu_seconds: float
    peak: int
    peak_at: float
    processes: int
    output: str


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None, every: float = EVERY) -> Watched:
    """Run a command, and look at the memory of its process tree every so many seconds.

    Raises:
        RuntimeError: the command failed; the end of what it printed is in the message.
        OSError: this system has no ``/proc/<pid>/smaps_rollup``, as Linux has.
    """
    tree_memory(os.getpid())  # refuses at once where nothing could be seen
    with tempfile.TemporaryFile() as printed:
        before, begin = os.times(), time.perf_counter()
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        peak, most, peak_at, still = 0, 0, 0.0, 0.0
        while process.poll() is None:
            looked = time.perf_counter()
            memory, count = tree_memory(process.pid)
            if memory > peak:
                peak, most, peak_at = memory, count, looked - begin
            # A look at large processes takes a while, too: it shall not slow down what it looks at.
            rest = max(every, 5 * (time.perf_counter() - looked))
            asleep = time.perf_counter()
            time.sleep(rest)
            late = time.perf_counter() - asleep - rest
            still += late if late > STILL else 0.0
        seconds, after = time.perf_counter() - begin, os.times()
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(
            f"Expected {' '.join(command)} to succeed, but it ended with {process.returncode}: {output[-3000:]}"
        )
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Watched(seconds - still, still, cpu, peak, peak_at, most, output)


def command_of(app: str, *overrides: str) -> list[str]:
    """The words of ``mvp-<app>``, as this Python runs it."""
    return [sys.executable, "-m", f"lightning_mvp.apps.{app}", *overrides]


def tree_memory(pid: int) -> tuple[int, int]:
    """PSS of a process and all that come from it, in bytes, and how many processes they are."""
    own = [_pss(each) for each in tree(pid)]
    seen = [size for size in own if size is not None]
    return sum(seen), len(seen)


def tree(pid: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                # The name of a program is in brackets and may hold spaces.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _pss(pid: int) -> int | None:
    """PSS of one process in bytes; None for one that has ended."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (ProcessLookupError, FileNotFoundError, PermissionError) as error:
        if pid == os.getpid():
            raise OSError("Expected a Linux with /proc/<pid>/smaps_rollup, but there is none.") from error
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
