"""A process that has imported torch and Lightning once, and forks what tests need: ranks, commands, lives to be killed.

A fork begins at once, where a new process would first import for seconds; otherwise it is a process of its own, with
its own exit code and output, and knows nothing but the files. ``python -m tests.nursery`` serves one client, by lines
of JSON: see :class:`Nursery`.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PATIENCE = 30.0  # seconds in which all processes must end once the first has; gloo would wait for half an hour


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def ranks_of(world_size: int) -> list[dict[str, str]]:
    """What a launcher tells each of its ranks on one machine."""
    if world_size == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    return [{**common, "NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def fork(act: Callable[[], object], log: Path, environment: Mapping[str, str]) -> int:
    """Start a process that does this and ends, with all that it says appended to a file; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(environment)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        act()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(pids: Iterable[int], patience: float = PATIENCE, limit: float = float("inf")) -> list[int | None]:
    """How each process ended; None for one that was ended from here, because it went on for too long.

    Args:
        pids: of this process's children.
        patience: seconds for the others once the first has ended.
        limit: seconds for all.
    """
    ends: dict[int, int | None] = dict.fromkeys(pids)
    left, deadline = set(ends), time.monotonic() + limit
    while left and time.monotonic() < deadline:
        for pid in tuple(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ends[pid] = os.waitstatus_to_exitcode(status)
                left.remove(pid)
                deadline = min(deadline, time.monotonic() + patience)
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return list(ends.values())


def run_script(path: str, *arguments: str) -> None:
    """Run a file as ``python PATH ARGUMENTS`` would."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def run_command(name: str, *arguments: str) -> None:
    """Run ``mvp-NAME ARGUMENTS``."""
    sys.argv = [f"mvp-{name}", *arguments]
    import_module(f"lightning_mvp.apps.{name}").main()


@dataclass(frozen=True)
class Ended:
    """Exit codes of all ranks (None: killed after waiting in vain), and what they printed, rank after rank."""

    codes: list[int | None]
    text: str

    @property
    def line(self) -> str:
        """The text without line breaks, to look for sentences in."""
        return " ".join(self.text.split())

    @property
    def well(self) -> bool:
        """Whether every process ended with 0."""
        return set(self.codes) == {0}


def launched(launcher: str, module: str, *arguments: object) -> Ended:
    """``python -m MODULE ARGUMENTS LAUNCHER`` on two devices, started as people do; back when both ranks have ended.

    ``"ddp"`` (Lightning starts a second process), ``"ddp_spawn"``, or ``"torchrun"`` (which starts both).
    """
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    )
    strategy = "ddp" if torchrun else launcher
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", module, *map(str, arguments), strategy],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Ended([done.returncode], done.stdout)


class Nursery:
    """The test's side: starts the process on first use.

    Args:
        folder: for logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process: subprocess.Popen[str] | None = None

    def run(
        self,
        function: str,
        *arguments: object,
        ranks: int = 1,
        cwd: Path | None = None,
        limit: float = 600.0,
        **environment: str,
    ) -> Ended:
        """Call ``module:function`` with texts as arguments, in forked processes.

        Args:
            function: such as ``"tests.nursery:run_command"``.
            arguments: handed on as texts.
            ranks: how many processes; several are told of each other as a launcher would.
            cwd: where they run.
            limit: seconds until they are killed.
            environment: variables for them.
        """
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.count += 1
        logs = [self.folder / f"{self.count}-{rank}.txt" for rank in range(ranks)]
        asked = {
            "function": function,
            "arguments": list(map(str, arguments)),
            "logs": list(map(str, logs)),
            "cwd": str(cwd or ROOT),
            "limit": limit,
            "environment": environment,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        codes = json.loads(self.process.stdout.readline())
        return Ended(codes, "".join(log.read_text() for log in logs))

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


def serve() -> None:
    # What nearly every fork would import.
    for name in ("lightning", "matplotlib.pyplot", "timm", "torch", "torchmetrics", "hydra", "lightning_mvp.apps.job"):
        import_module(name)
    for name in ("lightning_mvp", "lightning_mvp.training.rounds", "lightning_mvp.voting.voted"):
        vars(import_module(name))
    import torch
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with Ctrl-C ignored
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)

        def act(asked: dict[str, Any] = asked) -> None:
            rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning reads it when it is imported
            os.chdir(asked["cwd"])
            module, _, function = asked["function"].partition(":")
            getattr(import_module(module), function)(*asked["arguments"])

        pids = [
            fork(act, Path(log), {"OMP_NUM_THREADS": "1", **rank, **asked["environment"]})
            for log, rank in zip(asked["logs"], ranks_of(len(asked["logs"])), strict=True)
        ]
        print(json.dumps(wait(pids, limit=asked["limit"])), flush=True)


if __name__ == "__main__":
    serve()
