"""The records that a sweep's jobs leave in their folders, gathered, and written as a table for analysis."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning_mvp.apps.outcome import FACTS

RECORD = "job.json"
# The columns of jobs.csv around those of the swept keys.
FIRST = ("job", "state", *FACTS[:2])
NUMBERS = ("metric", *FACTS[2:], "seconds", "devices", "estimate")
LAST = ("overrides", "error", "log")

Record = Mapping[str, Any]


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


def own_overrides(records: Sequence[Record]) -> list[list[str]]:
    """Of each job, the overrides that not all jobs have.

    Example:
        >>> own_overrides([{"overrides": ["steps=4", "seed=0"]}, {"overrides": ["steps=4", "seed=1"]}])
        [['seed=0'], ['seed=1']]
    """
    counts = Counter(override for record in records for override in set(record["overrides"]))
    shared = {override for override, count in counts.items() if count == len(records) > 1}
    return [[override for override in record["overrides"] if override not in shared] for record in records]


def swept_values(records: Sequence[Record]) -> list[dict[str, str]]:
    """Of each job, the values of the keys in which jobs differ, as they were typed.

    Example:
        >>> swept_values([{"overrides": ["steps=4", "+a.b=0"]}, {"overrides": ["steps=4", "+a.b=1"]}])
        [{'a.b': '0'}, {'a.b': '1'}]
    """
    return [
        {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in own)}
        for own in own_overrides(records)
    ]


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row for each job, with a column for each swept key; what a record doesn't have is left empty.

    A swept key of the name of another column, such as ``output``, has no second one.
    """
    swept = swept_values(records)
    keys = [key for key in dict.fromkeys(key for values in swept for key in values) if key not in (*FIRST, *NUMBERS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*FIRST, *keys, *NUMBERS, *LAST), extrasaction="ignore")
        writer.writeheader()
        for record, values in zip(records, swept, strict=True):
            writer.writerow({**values, **record, "overrides": shlex.join(record["overrides"])})
