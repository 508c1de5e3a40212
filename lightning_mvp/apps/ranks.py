"""The ranks of one job: processes of their own, started by torch's launcher with that job's configuration alone.

Lightning starts the other ranks by repeating the command it finds in ``sys.argv``. In a sweep that is the *whole*
sweep; in a launcher's worker it is no command at all; and what it leaves in the environment makes the next job of that
process believe to be a rank. So the job's process is no rank here: it decides, starts all of them, waits, and is as it
was. A rank that fails ends the others and this job, never the sweep.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lightning_mvp.agreement import on_rank_zero
from lightning_mvp.apps.outcome import Outcome
from lightning_mvp.apps.runtime import prepare, trainer_of, trainer_options
from lightning_mvp.files import write_json
from lightning_mvp.lightning_internals import ScriptLauncher, SpawningLauncher

if TYPE_CHECKING:
    import lightning as L

T = TypeVar("T")
# How a rank that waited for rank 0 tells why that failed (turns.py); rank 0 itself may be ended before it can tell.
OF_RANK_ZERO = re.compile(r"RankZeroError: .*? has failed\. (\w+: .*)", re.DOTALL)


class RankFailedError(RuntimeError):
    """One of a job's ranks failed; the message says which, and its error."""


@dataclass(frozen=True)
class Ranks:
    """Who trains: this process alone, ranks that are yet to be started, or ranks that somebody has started already.

    Args:
        trainer: as the configuration makes it.
        start: whether the ranks are ours to start.
    """

    trainer: L.Trainer
    start: bool

    @classmethod
    def of(cls, config: DictConfig, sweeping: bool) -> Ranks:
        """As the ``trainer`` group says, and the environment.

        Raises:
            ValueError: a Trainer that can't be made, or a strategy whose processes cannot be started here.
        """
        if sweeping and "TORCHELASTIC_RUN_ID" in os.environ:
            raise ValueError(
                "Expected a sweep to be started as one process, but got torchrun. Each job starts its own ranks: leave "
                "torchrun out and set trainer.devices."
            )
        options = trainer_options(config, logger=False)
        trainer = trainer_of(options)
        launcher = trainer.strategy.launcher
        if isinstance(launcher, SpawningLauncher):
            raise ValueError(
                f"Expected a strategy whose ranks are commands of their own, but got {options['strategy']!r}. Use "
                "strategy=ddp or strategy=ddp_cpu."
            )
        start = isinstance(launcher, ScriptLauncher) and not _started_elsewhere(trainer)
        if start and trainer.num_nodes > 1:
            raise ValueError(
                f"Expected ranks on {trainer.num_nodes} nodes to be started by a launcher that reaches them, but got "
                "none. Use srun or torchrun on each node, or launcher=slurm."
            )
        return cls(trainer, start)

    @property
    def world_size(self) -> int:
        """How many processes train."""
        return self.trainer.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, or the one that will start the ranks."""
        return self.start or self.trainer.is_global_zero

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` answers, asked once; ranks that are there already get rank 0's answer, or its error."""
        if self.start or self.world_size == 1:
            return decide()
        self.trainer.strategy.setup_environment()

        def outcome() -> tuple[T | None, Exception | None]:
            try:
                return decide(), None
            except Exception as error:  # told by each rank in the same words
                return None, error

        answer, problem = on_rank_zero(self.trainer, outcome)
        if problem is not None:
            raise problem
        return answer  # type: ignore[return-value]

    def run(self, app: str, config: DictConfig, folder: Path) -> Any:
        """``run(config)`` of the app in each rank; what it returns in rank 0."""
        if not self.start:
            return import_module(f"lightning_mvp.apps.{app}").run(config)
        return start_ranks(app, config, self.world_size, folder)


def _started_elsewhere(trainer: L.Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


def start_ranks(app: str, config: DictConfig, world_size: int, folder: Path) -> Any:
    """Start ``world_size`` processes on this machine, wait for them, return what rank 0 returned.

    Args:
        app: the command's name without ``mvp-``.
        config: of this one job; the ranks get it with all interpolations resolved.
        world_size: how many.
        folder: the job's output folder; a new ``ranks-…`` in it has what the ranks were given and what came of it.

    Raises:
        RankFailedError: one failed; the others were ended.
        KeyboardInterrupt: Ctrl-C; all were ended.
    """
    folder = Path(mkdtemp(prefix="ranks-", dir=folder))  # another job may write into the same output folder
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    OmegaConf.save(HydraConfig.get().job_logging, folder / "logging.yaml", resolve=True)
    with TemporaryDirectory() as scratch, _signals_as_they_were(), _quiet_launcher():
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world_size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            elastic_launch(launch, sys.executable)("-m", "lightning_mvp.apps.ranks", app, str(folder), str(os.getpid()))
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=_order)
            problem, where = _error_of(failure)
            rank, problem = (0, found[1]) if (found := OF_RANK_ZERO.match(problem)) else (rank, problem)
            raise RankFailedError(f"rank {rank} of {world_size}: {problem}") from _Remote(where)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None
    told = json.loads((folder / "result.json").read_text())
    return Outcome(told.pop("metric"), **told) if isinstance(told, dict) else told


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """torch's launcher logs each process that ends; the job says once what has ended it."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class _Remote(Exception):
    """Where a rank failed, in another process: the cause of :class:`RankFailedError`, for the log."""


def _order(failed: tuple[int, ProcessFailure]) -> int:
    """When a rank failed, in nanoseconds: the others lose their connection to it and fail within the same second.

    One that was killed has left no file, and comes first.
    """
    path = Path(failed[1].error_file)
    return path.stat().st_mtime_ns if path.is_file() else 0


def _error_of(failure: ProcessFailure) -> tuple[str, str]:
    """A rank's error and its traceback; of one that was killed, how."""
    said = failure.error_file_data["message"]
    return (said["message"], said["extraInfo"]["py_callstack"]) if isinstance(said, dict) else (failure.message,) * 2


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """torch's launcher sets handlers, where it may, and leaves them behind."""
    names = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


def _end_with_parent(parent: int) -> None:
    """A rank whose job was killed ends, too."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """One rank: ``python -m lightning_mvp.apps.ranks APP FOLDER PARENT``, started by :func:`start_ranks` in PARENT."""
    app, folder = sys.argv[1], Path(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[3]),), daemon=True).start()
    handler = get_error_handler()
    handler.initialize()
    try:
        logging.config.dictConfig(OmegaConf.to_container(OmegaConf.load(folder / "logging.yaml")))  # type: ignore[arg-type]
        config = OmegaConf.load(folder / "config.yaml")
        assert isinstance(config, DictConfig)
        prepare(config)
        value = import_module(f"lightning_mvp.apps.{app}").run(config)
        if int(os.environ["RANK"]) == 0:
            told = {"metric": float(value), **value.facts} if isinstance(value, Outcome) else value
            write_json(folder / "result.json", told, overwrite=True)
    except KeyboardInterrupt:  # told once, by the job, as is whatever else ends it
        sys.exit(130)
    except Exception as error:
        handler.record_exception(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
