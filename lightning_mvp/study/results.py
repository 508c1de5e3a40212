"""From the records of all runs to means with intervals, and to sentences about who won."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from lightning_mvp.study.methods import METHODS

RESAMPLES = 10_000

# A record of one method on one target, as `results.jsonl` has it.
Run = Mapping[str, Any]
# The draw of the zoo, and the name of the task.
Target = tuple[object, str]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % interval over targets (NaN for a single target)."""

    mean: float
    half: float


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
class Difference:
    """A mean difference over targets with its 95 % bootstrap interval (NaN for a single target)."""

    mean: float
    low: float
    high: float


def paired_bootstrap(differences: Sequence[float], strata: Sequence[object] | None = None) -> Difference:
    """Mean of paired differences with its percentile interval, 2.5 to 97.5 % of resampled means.

    Args:
        differences: one for each target.
        strata: the zoo of each target; targets are resampled within their zoo. Default: all are of one zoo.

    Example:
        >>> paired_bootstrap([1.0, 2.0, 3.0])
        Difference(mean=2.0, low=1.0, high=3.0)
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return Difference(float(values.mean()), math.nan, math.nan)
    names = [0] * len(values) if strata is None else list(strata)
    generator = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    for name in sorted(set(names), key=str):
        own = values[[other == name for other in names]]
        total += own[generator.integers(len(own), size=(RESAMPLES, len(own)))].sum(1)
    low, high = np.percentile(total / len(values), [2.5, 97.5])
    return Difference(float(values.mean()), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One method with one number of steps, over all targets.

    Args:
        method: its key in :data:`~lightning_mvp.study.methods.METHODS`.
        label: its name in reports.
        steps: the number of optimizer steps.
        accuracy: mean over targets.
        seconds: median over targets.
        parameters: mean over targets.
        macs: mean over targets.
        mvp_minus: MVP's accuracy minus this method's, over the same targets; None for MVP itself or without an MVP run.
        targets: how many targets there are.
        zoo: "theta0" for zoos whose entries began with θ⁰ where zoos with a parent are compared, too; else empty.
    """

    method: str
    label: str
    steps: int
    accuracy: Interval
    seconds: float
    parameters: int
    macs: int
    mvp_minus: Difference | None
    targets: int = 0
    zoo: str = ""


def target_of(run: Run) -> Target:
    """What pairs the runs of several methods: the draw of the zoo and the task."""
    return run.get("draw"), run["task"]


def by_target(runs: Iterable[Run], kind: Callable[[Run], Key]) -> dict[Key, dict[Target, Run]]:
    """Kind → target → run. Kinds and targets are in the order of their first runs."""
    found: dict[Key, dict[Target, Run]] = {}
    for run in runs:
        found.setdefault(kind(run), {})[target_of(run)] = run
    return found


def accuracies(on_target: Mapping[Target, Run]) -> dict[Target, float]:
    """Target → accuracy."""
    return {target: run["accuracy"] for target, run in on_target.items()}


def paired_difference(ours: Mapping[Target, float], theirs: Mapping[Target, float]) -> Difference | None:
    """The mean of ours minus theirs over the targets that both have; None where they have none in common."""
    both = [target for target in ours if target in theirs]
    if not both:
        return None
    return paired_bootstrap([ours[target] - theirs[target] for target in both], [draw for draw, _ in both])


def seconds_of_task(run: Run) -> float:
    """What a run took from the task's images in memory to the trained model, without evaluation."""
    return run["start_seconds"] + run["fit_seconds"]


def summarise(runs: Sequence[Run], reference: tuple[str, int] | None = None) -> list[Row]:
    """A row for each method and number of steps, in the order of the runs.

    Args:
        runs: records of targets.
        reference: the method and steps that others are compared with, over the targets that both have; None takes MVP
            with the steps of its first run.
    """
    by_method = by_target(runs, lambda run: (run["method"], run["steps"], run.get("zoo", "")))
    mvp = next((key[:2] for key in by_method if key[0] == "mvp"), ("mvp", 0)) if reference is None else reference
    ours = accuracies(by_method.get((*mvp, ""), {}))
    rows = []
    for (method, steps, zoo), on_target in by_method.items():
        own, theirs = list(on_target.values()), accuracies(on_target)
        rows.append(
            Row(
                method=method,
                label=METHODS[method].full + (", entries from θ⁰" if zoo == "theta0" else ""),
                steps=steps,
                accuracy=interval(list(theirs.values())),
                seconds=median(map(seconds_of_task, own)),
                parameters=round(fmean(run["parameters"] for run in own)),
                macs=round(fmean(run["macs"] for run in own)),
                mvp_minus=None if (method, steps, zoo) == (*mvp, "") else paired_difference(ours, theirs),
                targets=len(own),
                zoo=zoo,
            )
        )
    return rows


def verdict(row: Row, ours: str = "MVP") -> str:
    """A sentence about who won, by the paired interval; ``ours`` is what the others are compared with.

    Example:
        >>> difference = Difference(-0.05, -0.07, -0.03)
        >>> row = Row("dense", "dense fine-tuning", 40, Interval(0.9, 0.01), 1.0, 10, 10, difference)
        >>> verdict(row)
        'MVP does not win against dense fine-tuning, 40 steps: −5.0 points [−7.0, −3.0].'
    """
    difference = row.mvp_minus
    assert difference is not None
    clear = "wins against" if difference.low > 0 else "does not win against" if difference.high < 0 else None
    words = f"No clear difference of {ours} to" if clear is None else f"{ours} {clear}"
    return f"{words} {row.label}, {row.steps:,} steps: {format_points(difference, ' points')}."


def format_points(difference: Difference, unit: str = "") -> str:
    """A difference of accuracies in points, with its interval.

    Example:
        >>> format_points(Difference(0.012, 0.004, 0.021))
        '+1.2 [+0.4, +2.1]'
    """
    return f"{_points(difference.mean)}{unit} [{_points(difference.low)}, {_points(difference.high)}]"


def points_cell(difference: Difference | None, targets: int, all_targets: int, note: str = "") -> str:
    """A difference of accuracies as the text of a table's cell, in points. If there is none, a dash.

    Args:
        difference: as fractions.
        targets: how many it is the mean over; written in parentheses where they are not all.
        all_targets: how many targets the row has.
        note: Markdown that is written after the interval.

    Example:
        >>> points_cell(Difference(0.012, 0.004, 0.021), 4, 6), points_cell(None, 0, 6)
        ('+1.2 [+0.4, +2.1] (4)', '–')
    """
    if difference is None:
        return "–"
    return format_points(difference) + note + (f" ({targets})" if targets < all_targets else "")


def _points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def break_even(zoo_seconds: float, runs: Sequence[Run]) -> float | None:
    """New tasks after which a zoo's seconds are repaid, against iterative Taylor with its most steps.

    None where MVP saves no seconds there, or one of the two was not run.
    """
    rows = summarise(runs)
    ours = next((row for row in rows if row.method == "mvp"), None)
    theirs = max((row for row in rows if row.method == "taylor"), key=lambda row: row.steps, default=None)
    if ours is None or theirs is None or theirs.seconds <= ours.seconds:
        return None
    return zoo_seconds / (theirs.seconds - ours.seconds)


class Reach(NamedTuple):
    """The steps at which a rival's mean curve reaches an accuracy: an estimate and its 95 % bootstrap interval.

    It is ``inf`` where even the curve's last point is below.
    """

    steps: float
    low: float
    high: float


def steps_to_reach(curves: Sequence[Sequence[tuple[int, float]]], goals: Sequence[float]) -> Reach:
    """The steps at which the mean curve over targets reaches the mean goal, by interpolation in log steps.

    Args:
        curves: for each target ``(steps, accuracy)`` of runs with different budgets, ascending.
        goals: for each target the accuracy to reach.

    Example:
        >>> steps_to_reach([[(100, 0.5), (1000, 0.7)]] * 2, [0.6, 0.6]).steps
        316.2...
    """
    budgets = [point[0] for point in curves[0]]
    steps = np.log(budgets)
    table, wanted = np.array([[point[1] for point in curve] for curve in curves]), np.asarray(goals)

    def reach(index: np.ndarray) -> float:
        means, goal = table[index].mean(0), wanted[index].mean()
        above = np.flatnonzero(means >= goal)
        if not len(above):
            return math.inf
        first = int(above[0])
        if first == 0:
            return float(budgets[0])
        share = (goal - means[first - 1]) / (means[first] - means[first - 1])
        return float(np.exp(steps[first - 1] + share * (steps[first] - steps[first - 1])))

    generator, n = np.random.default_rng(0), len(curves)
    found = sorted(reach(generator.integers(n, size=n)) for _ in range(1000))
    return Reach(reach(np.arange(n)), found[25], found[974])


def hubs(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """How often each zoo entry was among MVP's neighbours, the most chosen first.

    Example:
        >>> hubs([{"method": "mvp", "task": "pets", "neighbours": [{"name": "cats"}]}, {"method": "dense"}])
        [('cats', 1)]
    """
    votes = {target_of(run): run["neighbours"] for run in runs if run["method"] == "mvp"}
    chosen = Counter(neighbour["name"] for neighbours in votes.values() for neighbour in neighbours)
    return sorted(chosen.items(), key=lambda item: (-item[1], item[0]))
