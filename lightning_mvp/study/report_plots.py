"""The pictures of a comparison, drawn from the records of its runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.results import Run, by_target, interval, target_of

Runs = Sequence[Run]

# Colours that colour-blind people can tell apart (Okabe and Ito). Controls that are drawn together have one colour.
COLOURS = {
    "mvp": "#D55E00",
    "grown": "#E69F00",
    "nearest": "#0072B2",
    "random_vote": "#56B4E9",
    "generic": "#009E73",
    "generic_parent": "#009E73",
    "generic_zoo": "#009E73",
    "oneshot_taylor": "#CC79A7",
    "oneshot_magnitude": "#F0E442",
    "oneshot_reconstructed": "#AA4499",
    "taylor": "#000000",
    "magnitude": "#666666",
    "torch_pruning": "#882255",
    "dense": "#999999",
}
MARKS = ("s", "D", "^", "v", "<", ">", "P", "X", "*", "h")
DASHES = {"generic_parent": "--", "generic_zoo": ":", "dense": "--"}


def framed(width: float, height: float, xlabel: str = "", ylabel: str = "", title: str = "") -> tuple[Figure, Axes]:
    """A figure with one pair of axes, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend below the axes, since inside it would hide some line."""
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=columns, loc="outside lower center")


def _only(runs: Runs, method: str) -> list[Run]:
    return [run for run in runs if run["method"] == method]


def _means(values: Iterable[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means in percent with half of their intervals; one target has none."""
    points = [interval(own) for own in values]
    return np.array([100 * point.mean for point in points]), np.nan_to_num([100 * point.half for point in points])


def correlation(x: Any, y: Any) -> float:
    """Pearson's correlation; NaN, without NumPy's warning, if one of the two inputs is constant.

    Example:
        >>> correlation([0, 1, 2], [1, 3, 5]), correlation([0, 1], [2, 2])
        (1.0, nan)
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return round(float(np.corrcoef(x, y)[0, 1]), 12)


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


def accuracy_against_steps(runs: Runs) -> Figure:
    """Mean test accuracy with its 95 % interval against optimizer steps, over the targets that methods have in common.

    Every point is a training run of its own with so many steps. Where no method was run with several numbers of steps,
    accuracies while training are drawn instead. They rise at the end, where a schedule's rate is low.
    """
    runs = on_common_targets(runs)
    budgets: dict[str, list[int]] = {}
    for method, steps in dict.fromkeys((run["method"], run["steps"]) for run in runs):
        budgets.setdefault(method, []).append(steps)
    singles = [method for method, own in budgets.items() if len(own) == 1]
    title = f"Accuracy against steps: mean over {len(set(map(target_of, runs)))} targets with its 95 % interval"
    figure, axes = framed(8.5, 6, "optimizer steps on the new task", "test accuracy (%)", title)
    for method, own_budgets in budgets.items():
        own, is_curve = _only(runs, method), len(singles) == len(budgets)
        if is_curve:
            values = {step: [run["curve"][i][1] for run in own] for i, (step, _) in enumerate(own[0]["curve"])}
        else:
            values = {steps: [run["accuracy"] for run in own if run["steps"] == steps] for steps in sorted(own_budgets)}
        means, half = _means(values.values())
        colour, style, label = COLOURS.get(method, "#BBBBBB"), DASHES.get(method, "-"), METHODS[method].short
        places = np.array(list(values), dtype=float)
        if not is_curve and method in singles:  # side by side
            places *= 1 + 0.05 * (singles.index(method) - len(singles) / 2)
            mark = MARKS[singles.index(method) % len(MARKS)]
            axes.errorbar(places, means, half, color=colour, marker=mark, markersize=5, ls="", lw=0.8, label=label)
            continue
        axes.plot(places, means, style, color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(places, means - half, means + half, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("symlog", linthresh=5)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    legend_below(figure, axes, 4)
    return figure


def similarity_against_shared_classes(rankings: Runs, measure: str = "LEEP") -> Figure:
    """Similarity of every zoo task to every target against the number of classes the two share.

    The more classes a target has, the lower is LEEP and the more of them it shares. So what is drawn is the share of
    the labels' entropy H(y) that LEEP explains, 1 + LEEP / H(y), by the number of classes, and the correlation is that
    within a target, the mean over targets that share more classes with some entries than with others. The lines are
    means over these targets, too.

    Args:
        rankings: one for each target: ``similarities``, and ``classes``, how many it has. Scoring images are balanced,
            so that H(y) is their logarithm.
        measure: what the similarity is called; only ``"LEEP"`` is divided by the entropy.
    """
    name = "1 + LEEP / H(y), the share of entropy explained" if measure == "LEEP" else measure
    figure, axes = framed(6, 4.2, "classes that zoo task and target share", name)
    jitter, found = np.random.default_rng(0), []
    counts = sorted({ranking["classes"] for ranking in rankings})
    colours = ("#0072B2",) if len(counts) == 1 else ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#000000")
    for count, colour in zip(counts, itertools.cycle(colours), strict=False):
        points = []
        for ranking in (ranking for ranking in rankings if ranking["classes"] == count):
            shared = np.array([each["shared_classes"] for each in ranking["similarities"]], dtype=float)
            scores = np.array([each["score"] for each in ranking["similarities"]])
            points.append((shared, 1 + scores / np.log(count) if measure == "LEEP" else scores))
        varying = [point for point in points if np.ptp(point[0])]
        found += [correlation(*point) for point in varying]
        shared, scores = (np.concatenate(each) for each in zip(*points, strict=True))
        shared += jitter.uniform(-0.15, 0.15, len(shared))
        label = f"{len(points)} target{'s' * (len(points) > 1)} of {count} classes"
        axes.scatter(shared, scores, s=10, alpha=0.35, color=colour, linewidths=0, label=label)
        if varying:
            shared, scores = (np.concatenate(each) for each in zip(*varying, strict=True))
            levels = sorted(set(shared))
            means = [scores[shared == level].mean() for level in levels]
            axes.plot(levels, means, color=colour, marker="o", markeredgecolor="white")
    within = f"{np.nanmean(found):.2f}" if np.isfinite(found).any() else "n/a"
    axes.set_title(f"Does {measure} find related tasks? correlation within a target {within}", fontsize=11)
    axes.legend(fontsize=8)
    return figure


def widths_per_group(runs: Runs) -> Figure:
    """Units of the dense backbone, of iterative Taylor and of the vote in each group, mean over targets."""
    series = {"dense": "dense backbone", "taylor": METHODS["taylor"].full, "mvp": "voted"}
    groups = list(_only(runs, "mvp")[0]["widths"])
    figure, axes = framed(max(6.0, 0.9 * len(groups) + 2), 4, ylabel="units", title="Widths per group")
    axes.grid(False)
    for index, (method, label) in enumerate(series.items()):
        if own := _only(runs, method):
            heights = [fmean(run["widths"][group] for run in own) for group in groups]
            places = np.arange(len(groups)) + 0.27 * (index - 1)
            bars = axes.bar(places, heights, 0.26, label=label, color=COLOURS[method])
            axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right", fontsize=8)
    axes.legend(fontsize=8)
    return figure


def overlap_by_group(rows: Sequence[OverlapRow]) -> Figure:
    """Mean IoU of two tasks' masks in each group, compared with chance, and what it correlates with.

    The upper plot shows for three ratios the mean over pairs (± one standard deviation), the IoU of random masks, and
    that of a task's mask with the backbone's own magnitude mask. The lower plot shows for the last ratio correlations
    over pairs, filled where Mantel's p < 0.05.
    """
    levels = sorted({row.pruning_ratio for row in rows})
    groups = [row.group for row in rows if row.pruning_ratio == levels[0]]
    figure = Figure(figsize=(max(7.0, 0.9 * len(groups) + 2), 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    place = np.arange(len(groups))
    others = {"random": ("_", 14, "random masks"), "magnitude": ("x", 6, "with the magnitude mask")}
    for level, colour in zip(levels, ("#56B4E9", "#0072B2", "#D55E00"), strict=False):
        own = [row for row in rows if row.pruning_ratio == level]
        means, deviations = [row.iou for row in own], [row.deviation for row in own]
        above.errorbar(place, means, deviations, color=colour, marker="o", ls="", label=f"{level:.0%} removed")
        for name, (mark, size, _) in others.items():
            above.plot(place, [getattr(row, name) for row in own], color=colour, marker=mark, markersize=size, ls="")
    for mark, size, label in others.values():
        above.plot([], [], color="black", marker=mark, markersize=size, ls="", label=label)
    above.set(ylabel="IoU of two tasks' masks", ylim=(0, 1))
    above.legend(fontsize=8, ncols=2)
    last = [row for row in rows if row.pruning_ratio == levels[-1]]
    for measure, label, colour in (
        ("leep", "LEEP", "#0072B2"),
        ("classes", "shared classes", "#009E73"),
        ("superclasses", "shared superclasses", "#CC79A7"),
    ):
        values = np.array([getattr(row, measure) for row in last])
        sure = np.array([getattr(row, f"{measure}_p") < 0.05 for row in last])
        below.plot(place, values, color=colour, lw=0.8, alpha=0.6)
        below.plot(place[sure], values[sure], label=label, color=colour, marker="o", ls="")
        below.plot(place[~sure], values[~sure], color=colour, markerfacecolor="white", marker="o", ls="")
    below.axhline(0, color="black", lw=0.8)
    below.set(ylabel="correlation with IoU over pairs")
    below.set_xticks(place, groups, rotation=30, ha="right", fontsize=8)
    below.legend(fontsize=8, title="filled: p < 0.05", title_fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.suptitle("Do similar tasks keep the same units?", fontsize=11)
    return figure


def accuracy_and_size(by_ratio: Mapping[float, Runs], steps: int) -> Figure:
    """Mean accuracy against the MACs that are left, a line for each method and number of steps.

    All means are over the targets on which MVP was run with these steps at every operating point. A method that was
    not run on all of them, at every point, is left out.
    """
    tables = [
        by_target([run for run in runs if not run.get("zoo")], lambda run: (run["method"], run["steps"]))
        for runs in by_ratio.values()
    ]
    common = set.intersection(*(set(table.get(("mvp", steps), {})) for table in tables))
    title = f"Accuracy at each operating point: mean over {len(common)} targets, 95 % interval"
    figure, axes = framed(7, 4.5, "MACs left (% of the dense backbone)", "test accuracy (%)", title)
    whole = max(run["macs"] for runs in by_ratio.values() for run in runs)
    for method, budget in tables[0]:
        if method == "dense" or not common or any(common - set(table.get((method, budget), {})) for table in tables):
            continue
        own = [[table[method, budget][target] for target in sorted(common, key=str)] for table in tables]
        x = [100 * fmean(run["macs"] for run in runs) / whole for runs in own]
        means, half = _means([run["accuracy"] for run in runs] for runs in own)
        style, label = DASHES.get(method, "-"), f"{METHODS[method].short}, {budget:,} steps"
        options: dict[str, Any] = {"ls": ":" if budget > steps else style, "marker": "o", "ms": 4, "capsize": 2}
        axes.errorbar(x, means, half, label=label, color=COLOURS.get(method, "#BBBBBB"), **options)
    legend_below(figure, axes, 3)
    return figure


def accuracy_against_entries(runs: Runs) -> Figure | None:
    """Mean accuracy against the number of a grown zoo's entries, a line for each growth, number of steps and weight.

    Colours are growths and markers are numbers of steps; markers are hollow without mimicking.

    Args:
        runs: of variants; those without ``vote.entries`` are left out, and targets that not all points have.
    """
    own = [(run["changes"], run) for run in runs if "vote.entries" in run["changes"]]
    if not own:
        return None
    points: dict[tuple[str, int, float], dict[int, dict[str, float]]] = {}
    for changes, run in own:
        line = (changes.get("vote.growth", "independent"), run["steps"], changes.get("optim.mimic", 0))
        points.setdefault(line, {}).setdefault(changes["vote.entries"], {})[run["task"]] = 100 * run["accuracy"]
    found = [set(tasks) for by_entries in points.values() for tasks in by_entries.values()]
    common = set.intersection(*found) or set.union(*found)
    figure, axes = framed(7, 5.5, "entries in the zoo", "test accuracy, %")
    growths, budgets = (sorted({line[place] for line in points}) for place in (0, 1))  # type: ignore[type-var]
    for (growth, steps, weight), by_entries in sorted(points.items()):
        entries = sorted(by_entries)
        means = [fmean(value for task, value in by_entries[n].items() if task in common) for n in entries]
        axes.plot(
            entries,
            means,
            color=f"C{growths.index(growth)}",
            marker="ovs^D"[budgets.index(steps) % 5],
            fillstyle="full" if weight else "none",
            label=f"{growth}, {steps} steps" + (", mimicking" if weight else ""),
        )
    axes.set_title(f"{len(common)} targets", fontsize=11)
    legend_below(figure, axes, columns=3)
    return figure
