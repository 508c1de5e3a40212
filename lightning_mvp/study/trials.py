"""Trials on development tasks, set against the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning_mvp.study.results import Difference, paired_bootstrap


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


def compare_trials(runs: Sequence[dict[str, Any]]) -> list[TrialResult]:
    """Each trial against the first, paired over tasks.

    Args:
        runs: on development tasks, of one or several studies whose tasks are the same.
    """
    by_trial: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        by_trial.setdefault(run["trial"], {})[run["task"]] = run
    base = next(iter(by_trial.values()))
    results = []
    for name, on_task in by_trial.items():
        one, own = next(iter(on_task.values())), list(on_task.values())
        pairs = [run["accuracy"] - base[task]["accuracy"] for task, run in on_task.items() if task in base]
        results.append(
            TrialResult(
                name=name,
                method=f"{one['method']}@{one['steps']}",
                changes=one["changes"],
                accuracy=fmean(run["accuracy"] for run in own),
                difference=paired_bootstrap(pairs),
                macs=fmean(run["macs"] for run in own),
                tasks=len(own),
            )
        )
    return results
