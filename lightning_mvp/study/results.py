"""From the records of all runs to means with intervals, and to sentences about who won."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from scipy import stats

from lightning_mvp.study.records import read_record
from lightning_mvp.study.settings import METHODS, StudySettings


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % interval over targets (NaN for a single target)."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    r"""Mean and Student-t interval, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n`.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, half=2.48...)
    """
    if len(values) < 2:
        return Interval(fmean(values), math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), half)


@dataclass(frozen=True)
class Row:
    """One method over all targets."""

    method: str
    label: str
    steps: int
    accuracy: Interval
    seconds: float
    parameters: int
    macs: int
    #: MVP's accuracy minus this method's, over the same targets; None for MVP itself or without an MVP run.
    mvp_minus: Interval | None


def load_runs(folder: Path, settings: StudySettings) -> list[dict[str, Any]]:
    """The records of all methods on all targets that are done."""
    names = [
        f"target-{index:03d}--{method}" for method in settings.methods for index in range(settings.split["targets"])
    ]
    return [record for name in names if (record := read_record(folder, name)) is not None]


def summarise(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each method, in the order of the runs; paired differences are over targets both have."""
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], {})[run["task"]] = run
    mvp = by_method.get("mvp", {})
    rows = []
    for method, on_task in by_method.items():
        own = list(on_task.values())
        paired = [mvp[task]["accuracy"] - run["accuracy"] for task, run in on_task.items() if task in mvp]
        rows.append(
            Row(
                method=method,
                label=METHODS[method].full,
                steps=own[0]["steps"],
                accuracy=interval([run["accuracy"] for run in own]),
                seconds=median(run["start_seconds"] + run["fit_seconds"] for run in own),
                parameters=round(fmean(run["parameters"] for run in own)),
                macs=round(fmean(run["macs"] for run in own)),
                mvp_minus=interval(paired) if paired and method != "mvp" else None,
            )
        )
    return rows


def verdict(row: Row) -> str:
    """Who won, in a sentence, from the paired interval.

    Example:
        >>> row = Row("dense", "dense fine-tuning", 40, Interval(0.9, 0.01), 1.0, 10, 10, Interval(-0.05, 0.02))
        >>> verdict(row)
        'MVP does not win against dense fine-tuning: −5.0 points [−7.0, −3.0].'
    """
    assert row.mvp_minus is not None
    difference = row.mvp_minus
    figures = f"{_points(difference.mean)} points [{_points(difference.low)}, {_points(difference.high)}]"
    if difference.low > 0:
        return f"MVP wins against {row.label}: {figures}."
    if difference.high < 0:
        return f"MVP does not win against {row.label}: {figures}."
    return f"No clear difference to {row.label}: {figures}."


def _points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def break_even(settings: StudySettings, folder: Path, runs: Sequence[dict[str, Any]]) -> float | None:
    """New tasks after which the zoo's seconds are repaid, against iterative Taylor with ten times the steps.

    None where MVP saves no seconds there, or one of the two was not run.
    """
    seconds = {row.method: row.seconds for row in summarise(runs)}
    if not {"mvp", "taylor_10x"} <= set(seconds) or seconds["taylor_10x"] <= seconds["mvp"]:
        return None
    names = [f"source-{index:03d}" for index in range(settings.split["sources"])]
    zoo = sum(record["seconds"] for name in names if (record := read_record(folder, name)) is not None)
    return zoo / (seconds["taylor_10x"] - seconds["mvp"])


def hubs(runs: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """How often each zoo entry was among MVP's neighbours, the most chosen first.

    Example:
        >>> hubs([{"method": "mvp", "neighbours": [{"name": "cats"}]}, {"method": "dense"}])
        [('cats', 1)]
    """
    chosen = Counter(neighbour["name"] for run in runs if run["method"] == "mvp" for neighbour in run["neighbours"])
    return sorted(chosen.items(), key=lambda item: (-item[1], item[0]))
