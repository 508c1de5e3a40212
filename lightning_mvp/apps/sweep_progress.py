"""How far a sweep is: a whole line of its own now and then, in the process that was started, whoever runs the jobs.

Jobs that run at once share the terminal, so that a bar of one would overwrite that of another. The line is made from
the records that jobs leave, and is printed by one process alone. Needs no torch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mvp.apps.runtime import console, cores
from lightning_mvp.apps.sweep_records import RECORD
from lightning_mvp.words import counted, lasting

SECONDS = 1.0  # between two looks, and between two lines at least


def progress_line(states: Mapping[str, int], jobs: int | None, seconds: float) -> str:
    """How many jobs have ended, and how long the others will take if they take as long.

    Args:
        states: how many jobs ended in each state.
        jobs: how many there are; None where nobody knows, as with a sweeper that searches.
        seconds: since the sweep began. Jobs that were there already took none of them.

    Example:
        >>> progress_line({"done": 2, "failed": 1, "there already": 1}, 12, 90.0)
        'sweep: 4 of 12 jobs ended (1 failed, 1 there already), about 4 min left'
        >>> progress_line({"done": 1}, None, 90.0)
        'sweep: 1 job ended'
    """
    ended, worked = sum(states.values()), sum(states.values()) - states.get("there already", 0)
    line = f"sweep: {counted(ended, 'job') if jobs is None else f'{ended} of ' + counted(jobs, 'job')} ended"
    others = [f"{states[state]} {state}" for state in ("failed", "stopped", "there already") if states.get(state)]
    line += f" ({', '.join(others)})" * bool(others)
    if jobs is not None and worked and ended < jobs:
        line += f", about {lasting((jobs - ended) * seconds / worked)} left"
    return line


def jobs_at_once(launcher: str, options: Mapping[str, Any], jobs: int) -> int:
    """How many of a sweep's jobs run at the same time.

    Args:
        launcher: Hydra's, such as ``"joblib"``.
        options: its configuration.
        jobs: how many there are.

    Example:
        >>> jobs_at_once("basic", {}, 8), jobs_at_once("joblib", {"n_jobs": 4}, 8), jobs_at_once("joblib", {}, 8)
        (1, 4, 1)
    """
    most: Any = 1
    if launcher == "joblib":
        told = options.get("n_jobs") or 1
        most = told if told > 0 else cores() + 1 + told  # as joblib counts them
    elif launcher == "submitit_local":
        most = jobs
    elif launcher == "submitit_slurm":
        most = options.get("array_parallelism") or jobs
    elif launcher == "ray":
        told = options.get("ray") or {}
        machine, each = ((told.get(part) or {}).get("num_cpus") for part in ("init", "remote"))
        most = (machine or cores()) // (each or 1)
    return max(1, min(int(most), jobs))


def total_seconds(estimates: list[float], at_once: int) -> float:
    """How long jobs take if each begins as soon as one before it has ended.

    Example:
        >>> total_seconds([3.0, 1.0, 1.0, 1.0], 1), total_seconds([3.0, 1.0, 1.0, 1.0], 2)
        (6.0, 3.0)
    """
    ends = [0.0] * at_once
    for seconds in estimates:
        first = ends.index(min(ends))
        ends[first] += seconds
    return max(ends)


class Progress:
    """Prints :func:`progress_line` whenever more jobs have ended.

    Args:
        folder: of the sweep.
        before: records that were there before it, and when they were written.
        jobs: how many there will be; None: not known.
    """

    def __init__(self, folder: Path, before: Mapping[Path, int], jobs: int | None) -> None:
        self.folder, self.before, self.jobs = folder, before, jobs
        self._states: Counter[str] = Counter()
        self._seen: set[Path] = set()
        self._begun = self._told = time.monotonic()
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def watch(self) -> None:
        """Look every second from now on, in a thread; for jobs that other processes run."""
        self._watch = threading.Thread(target=self._keep_looking, daemon=True)
        self._watch.start()

    def _keep_looking(self) -> None:
        while not self._over.wait(SECONDS):
            self.look()

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        if self._watch is not None:
            self._watch.join()

    def look(self) -> None:
        """Print a line if jobs have ended since the last one, a second ago or earlier."""
        new = 0
        for path in self.folder.glob(f"*/{RECORD}"):
            if path in self._seen:
                continue
            try:
                written, state = path.stat().st_mtime_ns, json.loads(path.read_text())["state"]
            except (OSError, ValueError):  # it is being written by a machine far away
                continue
            if written != self.before.get(path) and state != "running":
                self._seen.add(path)
                self._states[state] += 1
                new += 1
        now = time.monotonic()
        if new and (now - self._told >= SECONDS or sum(self._states.values()) == self.jobs):
            self._told = now
            line = progress_line(self._states, self.jobs, now - self._begun)
            console.print(line, highlight=False, markup=False)
