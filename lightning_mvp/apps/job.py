"""One job of a command: prepared, decided once, then done here or by ranks of its own; its record says how it ended.

Hydra runs a job in this process or in one of a launcher's. There :class:`Job` arrives as a name, and reads nothing of
the process it was made in.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.markup import escape

from lightning_mvp.apps.arguments import quoted, with_folders
from lightning_mvp.apps.hydra_internals import JobError, is_parallel, is_sweep
from lightning_mvp.apps.runtime import FOR_PEOPLE, console, forget_ranks, is_alone, is_first, prepare
from lightning_mvp.apps.sweep import report_sweep
from lightning_mvp.apps.sweep_records import RECORD
from lightning_mvp.apps.values import launcher_problem, require_logger, require_types
from lightning_mvp.files import write_json
from lightning_mvp.words import counted


@dataclass(frozen=True)
class Done:
    """Why a job has nothing to do.

    Args:
        what: a sentence without a full stop, for people.
        metric: what the job would have returned, if that is known.
        facts: what else its row of jobs.csv says, by the names of :data:`~lightning_mvp.apps.outcome.FACTS`.
    """

    what: str
    metric: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class JobFailed(JobError):
    """A job of a sweep failed. Hydra goes on with the others and shows the message; the job's log has the traceback."""


class Job:
    """What Hydra calls for each job of ``mvp-<app>``.

    The module ``lightning_mvp.apps.<app>`` has ``run(config)``. That of a command that trains has
    ``ready(config, world_size)``, too, called once, before there are ranks: it refuses bad input, or returns a
    :class:`Done`; then every rank calls ``run``. ``refuse_early(config)`` refuses what is seen without torch.
    ``cost(config)`` estimates a job's seconds for ``dry_run=true``.

    Args:
        app: the command's name without ``mvp-``.
    """

    def __init__(self, app: str) -> None:
        self.app = app
        self.__module__ = f"lightning_mvp.apps.{app}"  # whence Hydra takes the job's name

    def __call__(self, config: DictConfig) -> Any:
        sweeping = is_sweep()
        if sweeping:
            forget_ranks()
        app = import_module(f"lightning_mvp.apps.{self.app}")
        with _errors_for_people(self.app, sweeping):
            if hasattr(app, "ready"):
                with _recorded() as record:
                    return self._train(app, config, sweeping, record)
            _refuse_early(app, config, self.app)
            prepare(config, single=not sweeping and self.app != "compare")
            return app.run(config)

    def _train(self, app: ModuleType, config: DictConfig, sweeping: bool, record: dict[str, Any]) -> Any:
        """Decide, then do what there is to do, if anything; what came of it goes into the record."""
        problem = launcher_problem(HydraConfig.get().runtime.choices, sweeping)
        if problem is not None:
            raise ValueError(problem)
        _refuse_early(app, config, self.app)
        prepare(config, single=not sweeping)  # before more is imported, which may ask for CUDA
        from lightning_mvp.apps.ranks import Ranks

        if sweeping and is_parallel() and not _typed("trainer.enable_progress_bar"):  # they would overwrite each other
            config.trainer.enable_progress_bar = False
        with open_dict(config):  # what a Trainer writes by itself belongs to the job
            config.trainer.setdefault("default_root_dir", str(_folder()))
        ranks = Ranks.of(config, sweeping)
        record["devices"] = ranks.world_size
        asked = config
        # What `ready` leaves in the configuration is decided, too.
        done, config = ranks.agree(lambda: (app.ready(asked, ranks.world_size), asked))
        if done is not None:
            record |= {**done.facts, "state": "there already", "metric": done.metric}
            if ranks.is_first:
                console.print(done.what, markup=False, highlight=False)
        elif config.dry_run:
            estimate = app.cost(config) if hasattr(app, "cost") else None
            record |= {"state": "planned", "estimate": estimate}
            if ranks.is_first and not sweeping:
                console.print(_plan(self.app, ranks.world_size, estimate), highlight=False)
        else:
            made = ranks.run(self.app, config, _folder())
            record |= {**getattr(made, "facts", {}), "metric": float(made)}
        return record.get("metric")


def _refuse_early(app: ModuleType, config: DictConfig, name: str) -> None:
    """Refuse what can be seen without torch, whose import takes seconds.

    Files are looked for where no other rank would wait for this one. Once torch is there, whatever is asked later
    looks for them soon enough.
    """
    require_types(config, name)
    require_logger(HydraConfig.get().runtime.choices)
    if hasattr(app, "refuse_early") and "torch" not in sys.modules and is_alone():
        app.refuse_early(config)


def _typed(key: str) -> bool:
    return any(word.lstrip("+").startswith(f"{key}=") for word in HydraConfig.get().overrides.task)


def _plan(app: str, world_size: int, estimate: float | None) -> str:
    seconds = "" if estimate is None else f"; training takes about {estimate:.0f} s, as measured here"
    return f"would run mvp-{app} in {counted(world_size, 'process', 'processes')}{seconds}. Nothing was done"


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _log() -> Path:
    return _folder() / f"{HydraConfig.get().job.name}.log"


@contextmanager
def _recorded() -> Iterator[dict[str, Any]]:
    """The job's record in its output folder, while it runs and after; a traceback goes to its log.

    Of ranks that somebody else has started the first writes.
    """
    about, writes = HydraConfig.get(), is_first()
    log = _log()
    record: dict[str, Any] = {
        "job": about.job.num if is_sweep() else 0,
        "overrides": list(about.overrides.task),
        "state": "running",
        "log": str(log),
    }

    def write() -> None:
        if writes:
            write_json(_folder() / RECORD, record, overwrite=True)

    write()
    start = time.perf_counter()
    try:
        yield record
    except BaseException as error:
        failed = isinstance(error, Exception)
        record |= {"state": "failed", "error": f"{type(error).__name__}: {error}"} if failed else {"state": "stopped"}
        if writes and failed:
            with log.open("a") as file:
                file.write(traceback.format_exc())
        raise
    else:
        if record["state"] == "running":
            record["state"] = "done"
    finally:
        record["seconds"] = time.perf_counter() - start
        write()


@contextmanager
def _errors_for_people(app: str, sweeping: bool) -> Iterator[None]:
    """Errors that a person can mend are told without a traceback (``LIGHTNING_MVP_TRACEBACK=1`` shows it).

    A command ends with exit code 1 then. A sweep goes on: whatever failed, its other jobs are run. Ctrl-C is no error:
    it is answered in a sentence, with exit code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped(app, sweeping, 130) from None
    except SystemExit as error:  # Lightning ends a fit so: at Ctrl-C with 1, at SIGTERM with what looks like success
        code = 130 if isinstance(error.__context__, KeyboardInterrupt) else error.code or 143
        raise _stopped(app, sweeping, code) from None
    except Exception as error:
        kind = type(error).__name__
        unknown = _unknown_argument(error) or _dead_loading_process(error) or _lost_rank(error)
        # Those of Lightning and torch are recognised by their names, because importing these takes seconds.
        named = kind in ("MisconfigurationException", "RankFailedError", "RankZeroError")
        mendable = sweeping or unknown or named or isinstance(error, FOR_PEOPLE)
        if os.environ.get("LIGHTNING_MVP_TRACEBACK") or not mendable:
            raise
        if kind == "RankFailedError" and not sweeping:
            console.print(f"The rank's traceback is in {_log()}", markup=False, highlight=False)
        console.print(f"[bold red]{kind}:[/] ", end="")
        console.print(unknown or str(error), markup=False, highlight=False)
        if sweeping:
            raise JobFailed(f"{kind}: {error}") from None
        raise SystemExit(1) from None


def _unknown_argument(error: Exception) -> str | None:
    """What to say of an argument that nobody has, and that was typed (``+optim.momentum=0.5``)."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, TypeError) and found:
        for word in HydraConfig.get().overrides.task:
            key = word.lstrip("+").partition("=")[0]
            if key.rpartition(".")[2] == found[1]:
                return f"Expected arguments that exist, but got `{key}`. Leave {word} out of the command."
    return None


def _lost_rank(error: Exception) -> str | None:
    """What to say on a rank that only notices that another one has ended, which has told why."""
    if isinstance(error, RuntimeError) and re.search("Connection (closed|reset) by peer|Broken pipe", str(error)):
        return f"Another rank has ended, and this one with it ({str(error).splitlines()[0]})."
    return None


def _dead_loading_process(error: Exception) -> str | None:
    """What to say when a loading process has ended: torch raises that wherever the job is, also in a training step."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"A loading process ended before its work was done ({error}). If memory ran out, lower data.num_workers or "
            "data.batch_size; with data.num_workers=0 the job opens images itself, and shows what happens."
        )
    return None


def _stopped(app: str, sweeping: bool, code: Any) -> SystemExit:
    """Only what has checkpoints or several jobs goes on; anything else begins anew."""
    again = "goes on from there" if sweeping or app in ("pretrain", "compare") else "starts this job anew"
    console.print(f"Stopped. What is written stays; the same command {again}.")
    return SystemExit(code)


def command(app: str) -> Any:
    """The console script ``mvp-<app>``: Hydra around a :class:`Job`, and after a sweep its table."""
    entry = hydra.main(version_base="1.3", config_path="pkg://lightning_mvp.conf", config_name=app)(Job(app))

    @wraps(entry)
    def main() -> None:
        try:
            sys.argv[1:] = quoted(with_folders(sys.argv[1:]))
        except ValueError as error:
            console.print(f"[bold red]ValueError:[/] {escape(str(error))}", highlight=False)
            raise SystemExit(1) from None
        with report_sweep(app):
            entry()

    return main
