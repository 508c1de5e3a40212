"""Runs with settings of their own, set against one of them: trials on development tasks, variants on targets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from lightning_mvp.study.results import (
    Difference,
    Interval,
    Run,
    Target,
    accuracies,
    by_target,
    interval,
    paired_difference,
    seconds_of_task,
)

NOT_COMPARED = Difference(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class TrialResult:
    """What one trial gave.

    Args:
        name: of the trial.
        method: with its steps.
        changes: dotted settings.
        accuracy: mean on validation images.
        difference: accuracy minus the first trial's, over the tasks both have.
        macs: mean over tasks.
        tasks: how many there were.
    """

    name: str
    method: str
    changes: Mapping[str, Any]
    accuracy: float
    difference: Difference
    macs: float
    tasks: int

    @property
    def question(self) -> str:
        """What it is about, the first part of a name such as ``batch-norm.kept``.

        Example:
            >>> trial = TrialResult("batch-norm.kept", "mvp@100", {}, 0.7, Difference(0, 0, 0), 1e6, 2)
            >>> trial.question, trial.answer
            ('batch norm', 'kept')
        """
        return self.name.partition(".")[0].replace("-", " ")

    @property
    def answer(self) -> str:
        """What it answers, the rest of its name."""
        return self.name.partition(".")[2]


def compare_trials(runs: Sequence[Run]) -> list[TrialResult]:
    """Each trial against the first, paired over tasks.

    Args:
        runs: on development tasks, of one or several studies whose tasks are the same.
    """
    by_trial = by_target(runs, lambda run: run["trial"])
    first = accuracies(next(iter(by_trial.values())))
    results = []
    for name, on_task in by_trial.items():
        own = list(on_task.values())
        results.append(
            TrialResult(
                name=name,
                method=f"{own[0]['method']}@{own[0]['steps']}",
                changes=own[0]["changes"],
                accuracy=fmean(run["accuracy"] for run in own),
                difference=paired_difference(accuracies(on_task), first) or NOT_COMPARED,
                macs=fmean(run["macs"] for run in own),
                tasks=len(own),
            )
        )
    return results


@dataclass(frozen=True)
class VariantResult:
    """What one variant gave, its orders of growth averaged in each target.

    Args:
        name: of the variant, without its order.
        steps: on the target.
        accuracy: over targets.
        start: mean accuracy before the first step.
        minus: accuracy minus the reference's, over the targets both have; None for the reference.
        orders: order of growth → its mean accuracy, where there are several.
        seconds: median of a target's.
        targets: how many.
    """

    name: str
    steps: int
    accuracy: Interval
    start: float
    minus: Difference | None
    orders: dict[str, float]
    seconds: float
    targets: int


def compare_variants(runs: Sequence[Run], reference: str) -> list[VariantResult]:
    """A result for each variant, in the order of the runs.

    Variants that differ in the order of growth alone are called alike but for an ending such as ``.A``; each target
    counts once, with their mean.

    Args:
        runs: records of targets.
        reference: the name that the others are set against.

    Example:
        >>> run = {"trial": "a.A@1", "task": "t", "steps": 1, "accuracy": 0.5, "curve": [(0, 0.2), (1, 0.5)]}
        >>> run |= {"start_seconds": 1, "fit_seconds": 1}
        >>> result, = compare_variants([run, {**run, "trial": "a.B@1", "accuracy": 0.7}], "a@1")
        >>> result.name, round(result.accuracy.mean, 2), result.orders
        ('a@1', 0.6, {'A': 0.5, 'B': 0.7})
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(split_order(run["trial"])[0], {}).setdefault(run["task"], []).append(run)
    means: dict[str, dict[Target, float]] = {
        name: {(None, task): fmean(run["accuracy"] for run in own) for task, own in tasks.items()}
        for name, tasks in found.items()
    }
    results = []
    for name, tasks in found.items():
        every = [run for own in tasks.values() for run in own]
        orders: dict[str, list[float]] = {}
        for run in every:
            orders.setdefault(split_order(run["trial"])[1], []).append(run["accuracy"])
        results.append(
            VariantResult(
                name=name,
                steps=every[0]["steps"],
                accuracy=interval(list(means[name].values())),
                start=fmean(fmean(run["curve"][0][1] for run in own) for own in tasks.values()),
                minus=None if name == reference else paired_difference(means[name], means.get(reference, {})),
                orders={order: fmean(orders[order]) for order in sorted(orders)} if len(orders) > 1 else {},
                seconds=median(map(seconds_of_task, every)),
                targets=len(tasks),
            )
        )
    return results


def split_order(trial: str) -> tuple[str, str]:
    """A variant's name and its order of growth.

    Example:
        >>> split_order("grown-50.A@100"), split_order("taylor@1000")
        (('grown-50@100', 'A'), ('taylor@1000', ''))
    """
    match = re.fullmatch(r"(.+)\.([A-Z])(@.*)?", trial)
    return (trial, "") if match is None else (match[1] + (match[3] or ""), match[2])
