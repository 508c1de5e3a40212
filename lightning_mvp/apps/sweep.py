"""What came of a sweep: a table, a row of CSV for each job, and what failed, with its log and how to retry it.

Every job writes a record into its own output folder, whatever launcher ran it; after the sweep, also one that failed or
was stopped, they are gathered here. Needs no torch: it stands around a cold ``--help``, too.
"""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from lightning_mvp.apps.runtime import console
from lightning_mvp.apps.values import launcher_problem

RECORD = "job.json"
COLUMNS = ("job", "state", "metric", "seconds", "devices", "estimate", "overrides", "error", "log")
SHOWN = 40  # rows on the screen; the CSV has them all

Record = Mapping[str, Any]

_folder: Path | None = None
_before: dict[Path, int] = {}  # records that were there already, and when they were written


class RememberSweep(Callback):
    """Tells :func:`report_sweep`, in the process that was started, where the jobs of a sweep write."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _folder, _before
        problem = launcher_problem(config.hydra.runtime.choices, sweeping=True)
        if problem is not None:  # Hydra would only warn of an Exception
            console.print(problem, highlight=False, markup=False)
            raise SystemExit(1)
        _folder = Path(config.hydra.sweep.dir)
        _before = {path: path.stat().st_mtime_ns for path in _folder.glob(f"**/{RECORD}")}


@contextmanager
def report_sweep(app: str) -> Iterator[None]:
    """Whatever happens within, report the sweep that was run there, if one was."""
    global _folder
    _folder = None
    try:
        yield
    finally:
        if _folder is not None:
            records = read_records(_folder, _before)
            if records:
                write_csv(_folder / "jobs.csv", records)
                for part in (sweep_table(records), *sentences(app, records)):
                    console.print(part, highlight=False, markup=False)
                console.print(f"wrote {_folder / 'jobs.csv'}", highlight=False, markup=False)


def read_records(folder: Path, before: Mapping[Path, int] = MappingProxyType({})) -> list[dict[str, Any]]:
    """The records of all jobs below a sweep's folder, by number, without those of ``before``: path → when written.

    A job that was killed has left one that says "running": once the sweep is over, it is "stopped".
    """
    files = [path for path in folder.glob(f"**/{RECORD}") if path.stat().st_mtime_ns != before.get(path)]
    records = [json.loads(path.read_text()) for path in files]
    for record in records:
        if record["state"] == "running":
            record["state"] = "stopped"
    return sorted(records, key=lambda record: record["job"])


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row for each job, with :data:`COLUMNS`; what a record doesn't have is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for record in records:
            writer.writerow({**record, "overrides": shlex.join(record["overrides"])})


def own_overrides(records: Sequence[Record]) -> list[list[str]]:
    """Of each job, the overrides that not all jobs have.

    Example:
        >>> own_overrides([{"overrides": ["steps=4", "seed=0"]}, {"overrides": ["steps=4", "seed=1"]}])
        [['seed=0'], ['seed=1']]
    """
    counts = Counter(override for record in records for override in set(record["overrides"]))
    shared = {override for override, count in counts.items() if count == len(records) > 1}
    return [[override for override in record["overrides"] if override not in shared] for record in records]


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


def sentences(app: str, records: Sequence[Record]) -> list[str]:
    """The numbers in words, then each failed job with its error, its log and the command that retries it alone.

    Example:
        >>> done = {"job": 0, "state": "done", "overrides": [], "seconds": 3.0}
        >>> sentences("prune", [done, {**done, "job": 1, "state": "planned", "estimate": 8.0, "devices": 2}])
        ['2 jobs: 1 done, 1 planned', 'about 8 s one after the other, as measured here']
    """
    states = Counter(record["state"] for record in records)
    jobs = "1 job" if len(records) == 1 else f"{len(records)} jobs"
    lines = [f"{jobs}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))]
    if len(records) > SHOWN:
        lines.append(f"{SHOWN} of them are shown, jobs.csv has all")
    estimates = [record["estimate"] for record in records if record.get("estimate") is not None]
    if estimates:
        lines.append(f"about {sum(estimates):.0f} s one after the other, as measured here")
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
