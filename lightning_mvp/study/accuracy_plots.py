"""Accuracies of a comparison in pictures: against steps, against size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from lightning_mvp.pictures import (
    DENSE,
    GENERIC,
    GROWN,
    INK,
    NEAREST,
    ONCE,
    RANDOM,
    SCRATCH,
    VOTE,
    chunks,
    label_ends,
    page,
    styled,
)
from lightning_mvp.study.grown_page import first_of_each_role, role_of
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.results import Run, by_target, interval, target_of
from lightning_mvp.study.trials import split_order

Runs = Sequence[Run]

COLOURS = {
    "mvp": VOTE,
    "grown": GROWN,
    "nearest": NEAREST,
    "random_vote": RANDOM,
    "all_vote": RANDOM,
    "farthest_vote": RANDOM,
    "generic": GENERIC,
    "generic_parent": GENERIC,
    "generic_zoo": GENERIC,
    "parent_magnitude": GENERIC,
    "oneshot_taylor": ONCE,
    "oneshot_magnitude": ONCE,
    "oneshot_reconstructed": ONCE,
    "taylor": SCRATCH,
    "magnitude": SCRATCH,
    "torch_pruning": SCRATCH,
    "dense": DENSE,
}
OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
OTHERS = "#5F6B7A"  # of methods that are drawn in rows, with their names
DASHES = {"generic_parent": "--", "generic_zoo": ":", "dense": "--"}
GROWN_NAME = METHODS["grown"].short
# The lines of a grown zoo's picture: a variant's role without its steps → its name there, and its colour.
SERIES = {
    "grown": (GROWN_NAME, GROWN),
    "one": ("one net, task after task", NEAREST),
    "taylor-mimic": ("iterative Taylor, mimicking", SCRATCH),
    "taylor": ("iterative Taylor", OTHERS),
    "once-mimic": ("one-shot Taylor, mimicking", ONCE),
    "dense": ("not pruned", DENSE),
}
# Who is compared with whom: each is a group of rows.
GROUPS = {
    "which models of the zoo vote": (
        "mvp",
        "mvp_refine",
        "grown",
        "all_vote",
        "random_vote",
        "farthest_vote",
        "nearest",
    ),
    "other masks, other weights": (
        "vote_theta0",
        "vote_nearest",
        "vote_random",
        "magnitude_average",
        "random_average",
    ),
    "one model for all tasks": ("parent_magnitude", "generic", "generic_parent", "generic_zoo"),
    "the dense backbone, cut at once": ("oneshot_taylor", "oneshot_magnitude", "oneshot_reconstructed"),
    "pruned from scratch": ("taylor", "magnitude", "torch_pruning"),
    "not pruned": ("dense",),
}


def _only(runs: Runs, method: str) -> list[Run]:
    return [run for run in runs if run["method"] == method]


def _means(values: Iterable[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means in percent with half of their intervals; one target has none."""
    points = [interval(own) for own in values]
    return np.array([100 * point.mean for point in points]), np.nan_to_num([100 * point.half for point in points])


def on_common_targets(runs: Runs) -> list[Run]:
    """The runs on targets on which MVP was run with all its numbers of steps, so that means are of the same tasks.

    Methods that were run on fewer than half of these targets are left out.
    """
    budgets = by_target(_only(runs, "mvp"), lambda run: run["steps"]).values()
    every = set(map(target_of, runs))
    common = every.intersection(*budgets) or every
    kept = [run for run in runs if target_of(run) in common]
    counts = Counter((run["method"], run["steps"]) for run in kept)
    return [run for run in kept if 2 * counts[run["method"], run["steps"]] >= len(common)]


@styled
def accuracy_against_steps(runs: Runs) -> Figure:
    """Mean test accuracy with its 95 % interval, over the targets that methods have in common.

    Above: a line for each method that was run with several numbers of steps, each point a training of its own; where
    there is none, accuracies while training, which rise at the end, where a schedule's rate is low. Below: all methods
    that were run with the steps that MVP shares with most of them, a row each.
    """
    runs = on_common_targets(runs)
    targets = len(set(map(target_of, runs)))
    curves, are_budgets = _curves(runs)
    methods = Counter(steps for _, steps in {(run["method"], run["steps"]) for run in runs})
    main = max((run["steps"] for run in _only(runs, "mvp") or runs), key=lambda steps: methods[steps])
    after: dict[str, list[float]] = {}
    for run in runs:
        if run["steps"] == main:
            after.setdefault(run["method"], []).append(run["accuracy"])
    rows = _rows(after, targets) if len(after) > 1 else []
    parts = list(chunks(list(curves)))
    each = "each point a training of its own" if are_budgets else "while training, whose rate falls to zero at the end"
    about = f"Test accuracy in %, mean over {targets} targets with its 95 % interval; {each}."
    heights = [3.1, *([0.205 * len(rows) + 0.45] if rows else [])]
    figure = page(sum(heights) + 0.9, "Accuracy against steps", about)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    cells = grid[0].subgridspec(1, len(parts))
    tops = [figure.add_subplot(cells[place]) for place in range(len(parts))]
    low, high = _room([values for curve in curves.values() for values in curve.values()])
    for axes, part in zip(tops, parts, strict=True):
        axes.set(ylim=(low, high), xlabel="optimizer steps on the new task")
        _steps_axis(axes, sorted({step for method in part for step in curves[method]}), are_budgets)
        for method in part:
            _line(axes, curves[method], COLOURS.get(method, OTHERS), DASHES.get(method, "-"), first=method == "mvp")
    tops[0].set_ylabel("test accuracy, %")
    if rows:
        _dots(figure.add_subplot(grid[1]), rows, main)
    for axes, part in zip(tops, parts, strict=True):
        ends = [(max(curves[method]), _means([curves[method][max(curves[method])]])[0][0]) for method in part]
        names = [(METHODS[method].short, COLOURS.get(method, OTHERS)) for method in part]
        label_ends(axes, [(*end, *name) for end, name in zip(ends, names, strict=True)])
    return figure


@styled
def grown_against_steps(runs: Runs) -> Figure | None:
    """Test accuracy of a grown zoo's vote and of what else could be done, against steps on the new task.

    The vote after 100 steps stands at its mean over all targets. Every other point stands at its paired difference
    from that, since not all rivals were run on all targets. Each point but that at no steps is a training of its own.
    None where no grown zoo voted.

    Args:
        runs: of variants with one label. Orders of growth count as one, with their mean; of several numbers of
            entries the first counts.
    """
    placed = _at_paired_differences(_variant_curves(runs))
    if not placed:
        return None
    targets = len(placed["grown"][100])
    about = (
        f"Test accuracy in %: the vote's mean over {targets} targets after 100 steps, all else at its paired "
        "difference\nfrom that, with its 95 % interval. Each point is a training of its own. Open: on fewer targets."
    )
    # The interval of two or three differences would only say how few they are.
    drawn = {
        series: {steps: own if len(own) >= 4 else [fmean(own)] for steps, own in curve.items()}
        for series, curve in placed.items()
    }
    figure = page(4.0, "Accuracy against steps", about)
    axes = figure.subplots()
    axes.set(ylim=_room([values for curve in drawn.values() for values in curve.values()]))
    axes.set(xlabel="optimizer steps on the new task", ylabel="test accuracy, %")
    _steps_axis(axes, sorted({steps for curve in drawn.values() for steps in curve}), are_budgets=True)
    ends = []
    for series, curve in drawn.items():
        name, colour = SERIES[series]
        _line(axes, curve, colour, "-", first=series == "grown")
        fewer = [steps for steps, own in placed[series].items() if len(own) < targets]
        axes.plot(fewer, [100 * fmean(curve[steps]) for steps in fewer], "o", color=colour, mfc="white", zorder=4)
        ends.append((max(curve), 100 * fmean(curve[max(curve)]), name, colour))
    label_ends(axes, ends)
    return figure


# Name in SERIES → steps → target → accuracies, one for each order of growth.
Curves = dict[str, dict[int, dict[str, list[float]]]]


def _variant_curves(runs: Runs) -> Curves:
    """The accuracies of variants that are drawn; before the first step, too, unless they prune while they train."""
    curves: Curves = {}
    names = first_of_each_role(runs)
    for run in runs:
        role, steps = role_of(run["trial"]), run["steps"]
        series = role.split("@")[0]
        if series not in SERIES or split_order(run["trial"])[0] != names[role]:
            continue
        points = {steps: run["accuracy"]}
        if steps == 100 and METHODS[run["method"]].kind != "rounds":
            points[0] = run["curve"][0][1]
        for at, accuracy in points.items():
            curves.setdefault(series, {}).setdefault(at, {}).setdefault(run["task"], []).append(accuracy)
    return curves


def _at_paired_differences(curves: Curves) -> dict[str, dict[int, list[float]]]:
    """Series → steps → the vote's mean after 100 steps plus the difference on each target that both were run on."""
    vote = {task: fmean(own) for task, own in curves.get("grown", {}).get(100, {}).items()}
    placed: dict[str, dict[int, list[float]]] = {}
    for series in SERIES:
        for steps, on_task in sorted(curves.get(series, {}).items()):
            if both := [task for task in on_task if task in vote]:
                whole = fmean(vote.values())
                values = [whole + fmean(on_task[task]) - vote[task] for task in both]
                placed.setdefault(series, {})[steps] = values
    return placed


def _curves(runs: Runs) -> tuple[dict[str, dict[int, list[float]]], bool]:
    """Method → steps → accuracies of its targets, and whether these are runs of their own."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        found.setdefault(run["method"], {}).setdefault(run["steps"], []).append(run["accuracy"])
    if any(len(own) > 1 for own in found.values()):  # MVP is there with one number of steps, too
        return {m: dict(sorted(own.items())) for m, own in found.items() if len(own) > 1 or m == "mvp"}, True
    while_training: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for step, accuracy in run["curve"] or [(run["steps"], run["accuracy"])]:
            while_training.setdefault(run["method"], {}).setdefault(step, []).append(accuracy)
    return while_training, False


def _room(groups: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Limits in percent that hold all means with their intervals."""
    means, half = _means(groups)
    low, high = float((means - half).min()), float((means + half).max())
    air = 0.05 * (high - low) or 1.0
    return low - air, high + air


def _steps_axis(axes: Axes, steps: Sequence[int], are_budgets: bool) -> None:
    """Ticks where something was measured; budgets, which grow by factors, in logarithms."""
    if are_budgets:
        axes.set_xscale("symlog", linthresh=next((step for step in steps if step), 1), linscale=0.6)
    axes.set_xticks(steps)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _line(axes: Axes, curve: Mapping[int, Sequence[float]], colour: str, dashes: str, *, first: bool) -> None:
    """Draw a curve and its 95 % interval. The ``first`` curve, which others are compared with, lies on top."""
    means, half = _means(curve.values())
    above = 3 if first else 2
    axes.fill_between(list(curve), means - half, means + half, color=colour, alpha=0.09, linewidth=0)
    if len(curve) == 1:
        axes.errorbar(list(curve), means, half, color=colour, lw=1.2, zorder=above)
    axes.plot(list(curve), means, dashes, color=colour, marker="o", zorder=above)


Row = tuple[str, str, list[float]]


def _rows(after: Mapping[str, list[float]], targets: int) -> list[Row]:
    """Method (empty for a heading), name and accuracies; best first within each group."""
    rows: list[Row] = []
    for heading, members in GROUPS.items():
        own = sorted((method for method in members if method in after), key=lambda method: -fmean(after[method]))
        if own:
            rows.append(("", heading, []))
        for method in own:
            fewer = f" ({len(after[method])} targets)" if len(after[method]) < targets else ""
            rows.append((method, METHODS[method].short + fewer, after[method]))
    return rows


def _dots(axes: Axes, rows: Sequence[Row], steps: int) -> None:
    """A dot with its interval and its value for each row."""
    axes.set_title(f"After {steps:,} steps")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="test accuracy, %", xlim=_room([own for _, _, own in rows if own]))
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
    for (method, _, own), label, place in zip(rows, axes.get_yticklabels(), range(len(rows)), strict=True):
        if not own:
            label.set(color=INK, fontweight="bold", fontsize=8)
            continue
        colour = COLOURS.get(method, OTHERS)
        means, half = _means([own])
        axes.errorbar(means, [place], xerr=half, color=colour, marker="o", lw=1.4, zorder=3)
        text: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": colour, "bbox": OVER_LINES}
        axes.annotate(f"{means[0]:.1f}", (means[0] + half[0], place), (5, 0), **text)
        if method == "mvp":
            axes.axvline(means[0], color=colour, lw=0.8, alpha=0.5, zorder=1)


@styled
def accuracy_and_size(by_ratio: Mapping[float, Runs], steps: int) -> Figure | None:
    """Mean accuracy against the MACs that are left, a line for each method and number of steps.

    All means are over the targets on which MVP was run with these steps at every operating point. A method that was
    not run on all of them, at every point, is left out. None where no target has all these runs of MVP.
    """
    tables = [
        by_target([run for run in runs if not run.get("zoo")], lambda run: (run["method"], run["steps"]))
        for runs in by_ratio.values()
    ]
    common = set.intersection(*(set(table.get(("mvp", steps), {})) for table in tables))
    if not common:
        return None
    whole = max(run["macs"] for runs in by_ratio.values() for run in runs)
    lines = [
        key for key in tables[0] if key[0] != "dense" and not any(common - set(table.get(key, {})) for table in tables)
    ]
    about = f"Mean over the same {len(common)} targets at each operating point; shaded: the 95 % interval of the vote."
    parts = list(chunks(lines))
    figure = page(4.2, "Accuracy against size", about)
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    ends: list[list[tuple[float, float, str, str]]] = []
    for axes, part in zip(panels, parts, strict=True):
        axes.set_xlabel("MACs left, % of the dense backbone")
        ends.append([])
        for method, budget in part:
            own = [[table[method, budget][target] for target in sorted(common, key=str)] for table in tables]
            x = [100 * fmean(run["macs"] for run in runs) / whole for runs in own]
            means, half = _means([run["accuracy"] for run in runs] for runs in own)
            colour = COLOURS.get(method, OTHERS)
            axes.plot(x, means, ":" if budget > steps else DASHES.get(method, "-"), color=colour, marker="o")
            if (method, budget) == ("mvp", steps):
                axes.fill_between(x, means - half, means + half, color=colour, alpha=0.1, linewidth=0)
            axes.set_xticks(x, [f"{place:.1f}" for place in x])
            last = int(np.argmax(x))
            ends[-1].append((x[last], means[last], f"{METHODS[method].short}, {budget:,} steps", colour))
    panels[0].set_ylabel("test accuracy, %")
    for axes, own_ends in zip(panels, ends, strict=True):
        label_ends(axes, own_ends)
    return figure
