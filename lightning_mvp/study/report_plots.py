"""The pictures of a comparison, drawn from the records of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.results import interval, target_of

Runs = Sequence[dict[str, Any]]

# Colour-blind-safe (Okabe and Ito), MVP in the strongest; controls that are drawn together have one colour.
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


def _of(runs: Runs, method: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["method"] == method]


def correlation(x: Any, y: Any) -> float:
    """Pearson's, or NaN (quietly) where one of the two does not vary.

    Example:
        >>> correlation([0, 1, 2], [1, 3, 5]), correlation([0, 1], [2, 2])
        (1.0, nan)
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return round(float(np.corrcoef(x, y)[0, 1]), 12)


def on_common_targets(runs: Runs) -> list[dict[str, Any]]:
    """The runs on targets on which MVP was run with all its budgets, of methods that were run on half of those or more.

    Means over other targets would be of other tasks.
    """
    budgets: dict[tuple[object, str], set[int]] = {}
    for run in _of(runs, "mvp"):
        budgets.setdefault(target_of(run), set()).add(run["steps"])
    every = set().union(*budgets.values()) if budgets else set()
    common = {target for target, own in budgets.items() if own == every} or {target_of(run) for run in runs}
    kept = [run for run in runs if target_of(run) in common]
    counts = Counter((run["method"], run["steps"]) for run in kept)
    return [run for run in kept if 2 * counts[run["method"], run["steps"]] >= len(common)]


def accuracy_against_steps(runs: Runs) -> Figure:
    """Mean test accuracy with its 95 % interval against optimizer steps, over the targets that methods have in common.

    Every point is a training of its own with so many steps. Where no method was run with several numbers of steps, the
    curves while training are drawn instead, which the low rates at a schedule's end favour.
    """
    runs = on_common_targets(runs)
    keys = list(dict.fromkeys((run["method"], run["steps"]) for run in runs))
    methods = list(dict.fromkeys(method for method, _ in keys))
    alone = len(keys) == len(methods)
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    axes = figure.subplots()
    singles = [method for method in methods if sum(method == other for other, _ in keys) == 1]
    for method in methods:
        own = _of(runs, method)
        if alone:
            values = {step: [run["curve"][i][1] for run in own] for i, (step, _) in enumerate(own[0]["curve"])}
        else:
            budgets = sorted({run["steps"] for run in own})
            values = {steps: [run["accuracy"] for run in own if run["steps"] == steps] for steps in budgets}
        points = [interval(accuracies) for accuracies in values.values()]
        means = np.array([100 * point.mean for point in points])
        # One target has no interval.
        half = np.nan_to_num([100 * point.half for point in points])
        colour, style, label = COLOURS.get(method, "#BBBBBB"), DASHES.get(method, "-"), METHODS[method].short
        steps = np.array(list(values), dtype=float)
        if not alone and method in singles:  # side by side
            steps *= 1 + 0.05 * (singles.index(method) - len(singles) / 2)
            mark = MARKS[singles.index(method) % len(MARKS)]
            axes.errorbar(steps, means, half, color=colour, marker=mark, markersize=5, ls="", lw=0.8, label=label)
            continue
        axes.plot(steps, means, style, color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(steps, means - half, means + half, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("symlog", linthresh=5)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    targets = len({target_of(run) for run in runs})
    axes.set(xlabel="optimizer steps on the new task", ylabel="test accuracy (%)")
    axes.set_title(f"Accuracy against steps: mean over {targets} targets with its 95 % interval", fontsize=11)
    axes.grid(alpha=0.3)
    # Below: wherever it stood inside, it would hide some line.
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
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
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    jitter, found = np.random.default_rng(0), []
    counts = sorted({ranking["classes"] for ranking in rankings})
    colours = ("#0072B2",) if len(counts) == 1 else ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#000000")
    for number, count in enumerate(counts):
        points, varying = [], []
        for ranking in rankings:
            if ranking["classes"] == count:
                shared = np.array([each["shared_classes"] for each in ranking["similarities"]], dtype=float)
                scores = np.array([each["score"] for each in ranking["similarities"]])
                points.append((shared, 1 + scores / np.log(count) if measure == "LEEP" else scores))
                if np.ptp(shared):
                    varying.append(points[-1])
                    found.append(correlation(*points[-1]))
        shared, scores = (np.concatenate(each) for each in zip(*points, strict=True))
        spread, colour = jitter.uniform(-0.15, 0.15, len(shared)), colours[number % len(colours)]
        label = f"{len(points)} target{'s' * (len(points) > 1)} of {count} classes"
        axes.scatter(shared + spread, scores, s=10, alpha=0.35, color=colour, linewidths=0, label=label)
        if varying:
            shared, scores = (np.concatenate(each) for each in zip(*varying, strict=True))
            levels = sorted(set(shared))
            means = [scores[shared == level].mean() for level in levels]
            axes.plot(levels, means, color=colour, marker="o", markeredgecolor="white")
    told = "1 + LEEP / H(y), the share of entropy explained" if measure == "LEEP" else measure
    axes.set(xlabel="classes that zoo task and target share", ylabel=told)
    within = f"{np.nanmean(found):.2f}" if np.isfinite(found).any() else "n/a"
    axes.set_title(f"Does {measure} find related tasks? correlation within a target {within}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def widths_per_group(runs: Runs) -> Figure:
    """Units of the dense backbone, of iterative Taylor and of the vote in each group, mean over targets."""
    dense = _of(runs, "dense")
    series = {"dense backbone": dense, METHODS["taylor"].full: _of(runs, "taylor"), "voted": _of(runs, "mvp")}
    colours = (COLOURS["dense"], "#000000", COLOURS["mvp"])
    groups = list(_of(runs, "mvp")[0]["widths"])
    figure = Figure(figsize=(max(6.0, 0.9 * len(groups) + 2), 4), layout="constrained")
    axes = figure.subplots()
    for index, ((label, own), colour) in enumerate(zip(series.items(), colours, strict=True)):
        if own:
            heights = [fmean(run["widths"][group] for run in own) for group in groups]
            bars = axes.bar(np.arange(len(groups)) + 0.27 * (index - 1), heights, 0.26, label=label, color=colour)
            axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="units")
    axes.set_title("Widths per group", fontsize=11)
    axes.legend(fontsize=8)
    return figure


def overlap_by_group(rows: Sequence[OverlapRow]) -> Figure:
    """Mean IoU of two tasks' masks in each group, beside chance, and what it goes together with.

    Above, for three ratios: the mean over pairs (± one standard deviation), that of random masks, and a task's with the
    backbone's own magnitude mask. Below, at the last ratio: correlations over pairs, filled where Mantel's p < 0.05.
    """
    levels = sorted({row.pruning_ratio for row in rows})
    groups = [row.group for row in rows if row.pruning_ratio == levels[0]]
    figure = Figure(figsize=(max(7.0, 0.9 * len(groups) + 2), 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    place = np.arange(len(groups))
    for level, colour in zip(levels, ("#56B4E9", "#0072B2", "#D55E00"), strict=False):
        own = [row for row in rows if row.pruning_ratio == level]
        name = f"{level:.0%} removed"
        above.errorbar(
            place, [row.iou for row in own], [row.deviation for row in own], color=colour, marker="o", ls="", label=name
        )
        above.plot(place, [row.random for row in own], color=colour, marker="_", markersize=14, ls="")
        above.plot(place, [row.magnitude for row in own], color=colour, marker="x", ls="")
    above.plot([], [], color="black", marker="_", markersize=14, ls="", label="random masks")
    above.plot([], [], color="black", marker="x", ls="", label="with the magnitude mask")
    above.set(ylabel="IoU of two tasks' masks", ylim=(0, 1))
    above.legend(fontsize=8, ncols=2)
    last = [row for row in rows if row.pruning_ratio == levels[-1]]
    series = (("leep", "LEEP", "#0072B2"), ("classes", "shared classes", "#009E73"))
    for measure, label, colour in (*series, ("superclasses", "shared superclasses", "#CC79A7")):
        values = [getattr(row, measure) for row in last]
        sure = [getattr(row, f"{measure}_p") < 0.05 for row in last]
        below.plot(place, values, color=colour, lw=0.8, alpha=0.6)
        for filled in (True, False):
            chosen = [i for i, is_sure in enumerate(sure) if is_sure == filled]
            face = colour if filled else "white"
            points = {"color": colour, "markerfacecolor": face, "marker": "o", "ls": ""}
            below.plot(place[chosen], [values[i] for i in chosen], label=label if filled else None, **points)
    below.axhline(0, color="black", lw=0.8)
    below.set(ylabel="correlation with IoU over pairs")
    below.set_xticks(place, groups, rotation=30, ha="right", fontsize=8)
    below.legend(fontsize=8, title="filled: p < 0.05", title_fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.suptitle("Do similar tasks keep the same units?", fontsize=11)
    return figure


def accuracy_and_size(by_ratio: Mapping[float, Runs], steps: int) -> Figure:
    """Mean accuracy against the MACs that are left, a line for each method and budget run at every operating point.

    All means are over the targets on which MVP was run with these steps at every point; a method that was not run on
    all of them is left out.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    tables: list[dict[tuple[str, int], dict[tuple[object, str], dict[str, Any]]]] = []
    for runs in by_ratio.values():
        table: dict[tuple[str, int], dict[tuple[object, str], dict[str, Any]]] = {}
        for run in runs:
            if not run.get("zoo"):
                table.setdefault((run["method"], run["steps"]), {})[target_of(run)] = run
        tables.append(table)
    common = set.intersection(*(set(table.get(("mvp", steps), {})) for table in tables))
    whole = max(run["macs"] for runs in by_ratio.values() for run in runs)
    for method, budget in tables[0]:
        if method == "dense" or not common or any(common - set(table.get((method, budget), {})) for table in tables):
            continue
        own = [[table[method, budget][target] for target in sorted(common, key=str)] for table in tables]
        x = [100 * fmean(run["macs"] for run in runs) / whole for runs in own]
        points = [interval([100 * run["accuracy"] for run in runs]) for runs in own]
        half = np.nan_to_num([point.half for point in points])
        label = f"{METHODS[method].short}, {budget:,} steps"
        style = ":" if budget > steps else DASHES.get(method, "-")
        options: dict[str, Any] = {
            "color": COLOURS.get(method, "#BBBBBB"),
            "ls": style,
            "marker": "o",
            "ms": 4,
            "capsize": 2,
        }
        axes.errorbar(x, [point.mean for point in points], half, label=label, **options)
    axes.set(xlabel="MACs left (% of the dense backbone)", ylabel="test accuracy (%)")
    axes.set_title(f"Accuracy at each operating point: mean over {len(common)} targets, 95 % interval", fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    return figure


def accuracy_against_entries(runs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Mean accuracy against the number of a grown zoo's entries, a line for each growth, number of steps and weight.

    Args:
        runs: of variants; those without ``vote.entries`` are left out, and targets that not all points have.
    """
    points: dict[tuple[str, int, float], dict[int, dict[str, float]]] = {}
    for run in runs:
        changes = run["changes"]
        if "vote.entries" in changes:
            line = (changes.get("vote.growth", "independent"), run["steps"], changes.get("optim.mimic", 0))
            points.setdefault(line, {}).setdefault(changes["vote.entries"], {})[run["task"]] = 100 * run["accuracy"]
    found = [set(tasks) for by_entries in points.values() for tasks in by_entries.values()]
    if not found:
        return None
    common = set.intersection(*found) or set.union(*found)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (growth, steps, weight), by_entries in sorted(points.items()):
        entries = sorted(by_entries)
        means = [fmean(value for task, value in by_entries[n].items() if task in common) for n in entries]
        axes.plot(entries, means, marker="o", label=f"{growth}, {steps} steps" + (", mimicking" if weight else ""))
    axes.set(xlabel="entries in the zoo", ylabel="test accuracy, %", title=f"{len(common)} targets")
    axes.legend(fontsize="small")
    return figure
