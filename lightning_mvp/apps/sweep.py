"""What came of a sweep: a table, a row of CSV for each job, and what failed, with its log and how to retry it.

Every job writes a record into its own output folder, whatever launcher ran it; after the sweep, also one that failed or
was stopped, they are gathered here. Needs no torch: it stands around a cold ``--help``, too.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from lightning_mvp.apps.hydra_internals import sweep_size
from lightning_mvp.apps.runtime import console
from lightning_mvp.apps.sweep_plot import draw_sweep
from lightning_mvp.apps.sweep_progress import Progress, jobs_at_once, total_seconds
from lightning_mvp.apps.sweep_records import RECORD, Record, own_overrides, read_records, write_csv
from lightning_mvp.apps.values import launcher_problem
from lightning_mvp.words import counted, lasting

SHOWN = 40  # rows on the screen; the CSV has them all

_folder: Path | None = None
_before: dict[Path, int] = {}  # records that were there already, and when they were written
_progress: Progress | None = None
_at_once = 1


class RememberSweep(Callback):
    """Tells :func:`report_sweep`, in the process that was started, where the jobs of a sweep write."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _folder, _before, _progress, _at_once
        problem = launcher_problem(config.hydra.runtime.choices, sweeping=True)
        if problem is not None:  # Hydra would only warn of an Exception
            console.print(problem, highlight=False, markup=False)
            raise SystemExit(1)
        _folder = Path(config.hydra.sweep.dir)
        _before = {path: path.stat().st_mtime_ns for path in _folder.glob(f"**/{RECORD}")}
        launcher, jobs = config.hydra.runtime.choices.get("hydra/launcher", "basic"), sweep_size(config.hydra)
        _at_once = jobs_at_once(launcher, config.hydra.launcher, jobs or 1000)
        if not config.get("dry_run"):
            _progress = Progress(_folder, _before, jobs)
            if launcher != "basic":
                _progress.watch()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if _progress is not None:  # else this process was not the one that was started, or there is no sweep
            _progress.look()


@contextmanager
def report_sweep(app: str) -> Iterator[None]:
    """Whatever happens within, report the sweep that was run there, if one was."""
    global _folder, _progress
    _folder = _progress = None
    try:
        yield
    finally:
        if _progress is not None:
            _progress.end()
        if _folder is not None:
            records = read_records(_folder, _before)
            if records:
                write_csv(_folder / "jobs.csv", records)
                for part in (sweep_table(records), *sentences(app, records, min(_at_once, len(records)))):
                    console.print(part, highlight=False, markup=False)
                drawn = draw_sweep(_folder / "jobs.png", records)
                for name in ("jobs.csv", *["jobs.png"] * drawn):
                    console.print(f"wrote {_folder / name}", highlight=False, markup=False)


def sweep_table(records: Sequence[Record]) -> Table:
    """Jobs, what came of them, and for how long; those that failed first where not all can be shown."""
    planned = any(record["state"] == "planned" for record in records)
    table = Table(title="Planned jobs" if planned else "Jobs")
    for name in ("job", "overrides", "state", "metric", "devices", "estimate" if planned else "seconds"):
        table.add_column(name, justify="left" if name in ("overrides", "state") else "right")
    rows = list(zip(records, own_overrides(records), strict=True))
    if len(rows) > SHOWN:
        rows.sort(key=lambda row: row[0]["state"] not in ("failed", "stopped"))
    for record, overrides in rows[:SHOWN]:
        seconds = record.get("estimate" if planned else "seconds")
        table.add_row(
            str(record["job"]),
            shlex.join(overrides),
            record["state"],
            "–" if record.get("metric") is None else f"{record['metric']:.4g}",
            str(record.get("devices", "–")),
            "–" if seconds is None else f"{seconds:.1f} s",
        )
    return table


def sentences(app: str, records: Sequence[Record], at_once: int = 1) -> list[str]:
    """The numbers in words, then each failed job with its error, its log and the command that retries it alone.

    Args:
        app: the command's name without ``mvp-``.
        records: of the jobs.
        at_once: how many of them run at the same time, for an estimate of all.

    Example:
        >>> done = {"job": 0, "state": "done", "overrides": [], "seconds": 3.0}
        >>> sentences("prune", [done, {**done, "job": 1, "state": "planned", "estimate": 8.0, "devices": 2}])
        ['2 jobs: 1 done, 1 planned', 'about 8 s one after the other, as measured here']
    """
    states = Counter(record["state"] for record in records)
    lines = [
        f"{counted(len(records), 'job')}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    ]
    if len(records) > SHOWN:
        lines.append(f"{SHOWN} of them are shown, jobs.csv has all")
    estimates = [record["estimate"] for record in records if record.get("estimate") is not None]
    if estimates:
        one_by_one = f"{lasting(sum(estimates))} one after the other"
        together = f"{lasting(total_seconds(estimates, at_once))} with {at_once} jobs at once ({one_by_one})"
        lines.append(f"about {one_by_one if at_once == 1 else together}, as measured here")
    for record in records:
        if record["state"] == "failed":
            lines += [
                f"job {record['job']} failed: {record['error']}",
                f"  log: {record['log']}",
                f"  again: {shlex.join([f'mvp-{app}', *config_flags(sys.argv[1:]), *record['overrides']])}",
            ]
    if states["stopped"]:
        lines.append(f"{states['stopped']} did not end; the same command goes on from there: {command_line(app)}")
    return lines


def config_flags(arguments: Sequence[str]) -> list[str]:
    """The flags that say where Hydra finds configurations.

    Example:
        >>> config_flags(["-m", "--config-dir", "mine", "steps=4", "--config-name=other"])
        ['--config-dir', 'mine', '--config-name=other']
    """
    flags, following = [], False
    for argument in arguments:
        named = argument.partition("=")[0] in ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
        if named or following:
            flags.append(argument)
        following = named and "=" not in argument
    return flags


def command_line(app: str) -> str:
    """The command as it was given."""
    return shlex.join([f"mvp-{app}", *sys.argv[1:]])
