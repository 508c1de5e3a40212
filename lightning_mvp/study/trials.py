"""Runs with settings of their own, compared with one of them: trials on development tasks, variants on targets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from lightning_mvp.study import results
from lightning_mvp.study.results import Difference, Interval, Run, Target

NOT_COMPARED = Difference(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class TrialResult:
    """What one trial or variant gave, its orders of growth averaged in each task.

    Args:
        name: the trial's name without its order of growth.
        method: the method with its steps.
        changes: the dotted settings that were changed.
        accuracy: mean over tasks, with its interval.
        start: mean accuracy before the first step.
        difference: accuracy minus the reference's, over the tasks that both have; NaN where there are none.
        orders: order of growth → its mean accuracy, where there are several orders.
        seconds: median over tasks.
        macs: mean over tasks.
        tasks: how many tasks there were.
    """

    name: str
    method: str
    changes: Mapping[str, Any]
    accuracy: Interval
    start: float
    difference: Difference
    orders: dict[str, float]
    seconds: float
    macs: float
    tasks: int

    @property
    def question(self) -> str:
        """The first part of a name such as ``batch-norm.kept``: what is asked."""
        return self.name.partition(".")[0].replace("-", " ")

    @property
    def answer(self) -> str:
        """The rest of such a name, ``kept``: the answer that was tried."""
        return self.name.partition(".")[2]


def compare_trials(runs: Sequence[Run], reference: str | None = None) -> list[TrialResult]:
    """Each trial compared with one of them, paired over tasks, in the order of the runs.

    The names of trials that differ only in the order of growth differ only in an ending such as ``.A``. They are one
    trial here, and each task counts once, with their mean.

    Args:
        runs: of trials on development tasks, or of variants on targets, of one or several studies whose tasks are the
            same.
        reference: the name of the trial that others are compared with; None for the first one.

    Example:
        >>> run = {"trial": "a.A@1", "task": "t", "steps": 1, "accuracy": 0.5, "curve": [(0, 0.2), (1, 0.5)]}
        >>> run |= {"start_seconds": 1, "fit_seconds": 1, "method": "grown", "changes": {}, "macs": 1}
        >>> result, = compare_trials([run, {**run, "trial": "a.B@1", "accuracy": 0.7}])
        >>> result.name, round(result.accuracy.mean, 2), result.orders
        ('a@1', 0.6, {'A': 0.5, 'B': 0.7})
    """
    found: dict[str, dict[Target, list[Run]]] = {}
    for run in runs:
        found.setdefault(split_order(run["trial"])[0], {}).setdefault((None, run["task"]), []).append(run)
    means = {
        name: {task: fmean(run["accuracy"] for run in own) for task, own in on_task.items()}
        for name, on_task in found.items()
    }
    theirs = means.get(next(iter(means)) if reference is None else reference, {})
    return [_result(name, on_task, means[name], theirs) for name, on_task in found.items()]


def _result(
    name: str, on_task: Mapping[Target, Sequence[Run]], means: dict[Target, float], theirs: dict[Target, float]
) -> TrialResult:
    every = [run for own in on_task.values() for run in own]
    orders: dict[str, list[float]] = {}
    for run in every:
        orders.setdefault(split_order(run["trial"])[1], []).append(run["accuracy"])
    return TrialResult(
        name=name,
        method=f"{every[0]['method']}@{every[0]['steps']}",
        changes=every[0]["changes"],
        accuracy=results.interval(list(means.values())),
        start=fmean(fmean(run["curve"][0][1] for run in own) for own in on_task.values()),
        difference=results.paired_difference(means, theirs) or NOT_COMPARED,
        orders={order: fmean(orders[order]) for order in sorted(orders)} if len(orders) > 1 else {},
        seconds=median(map(results.seconds_of_task, every)),
        macs=fmean(run["macs"] for run in every),
        tasks=len(on_task),
    )


def split_order(trial: str) -> tuple[str, str]:
    """A variant's name and its order of growth.

    Example:
        >>> split_order("grown-50.A@100"), split_order("taylor@1000")
        (('grown-50@100', 'A'), ('taylor@1000', ''))
    """
    match = re.fullmatch(r"(.+)\.([A-Z])(@.*)?", trial)
    return (trial, "") if match is None else (match[1] + (match[3] or ""), match[2])
