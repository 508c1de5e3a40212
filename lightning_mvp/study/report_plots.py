"""Pictures of what a comparison's tasks and models have in common: similarity, units kept, overlap of masks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.pictures import INK, LINES, NEAREST, PALETTE, QUIET, SCRATCH, VOTE, page, styled
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.results import Run

Runs = Sequence[Run]

# Widths that differ by fewer points are what rounding, or a constraint on widths, makes of one ratio.
SAME_WIDTH = 3.0
MEASURES = {"leep": "LEEP", "classes": "shared classes", "superclasses": "shared superclasses"}


def correlation(x: Any, y: Any) -> float:
    """Pearson's correlation; NaN, without NumPy's warning, if one of the two inputs is constant.

    Example:
        >>> correlation([0, 1, 2], [1, 3, 5]), correlation([0, 1], [2, 2])
        (1.0, nan)
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return round(float(np.corrcoef(x, y)[0, 1]), 12)


@styled
def similarity_against_shared_classes(rankings: Runs, measure: str = "LEEP") -> Figure:
    """Similarity of every zoo task to every target against the number of classes the two share.

    The more classes a target has, the lower is LEEP and the more of them it shares. So what is drawn is the share of
    the labels' entropy H(y) that LEEP explains, 1 + LEEP / H(y), a panel for each number of classes, and the
    correlation is that within a target, the mean over targets that share more classes with some entries than with
    others. The lines are means over these targets, too.

    Args:
        rankings: one for each target: ``similarities``, and ``classes``, how many it has. Scoring images are balanced,
            so that H(y) is their logarithm.
        measure: what the similarity is called; only ``"LEEP"`` is divided by the entropy.
    """
    jitter, found = np.random.default_rng(0), []
    counts = sorted({ranking["classes"] for ranking in rankings})
    drawn: list[tuple[str, str, np.ndarray, np.ndarray, list[float], list[float]]] = []
    for count, colour in zip(counts, PALETTE * len(counts), strict=False):
        points = []
        for ranking in (ranking for ranking in rankings if ranking["classes"] == count):
            shared = np.array([each["shared_classes"] for each in ranking["similarities"]], dtype=float)
            scores = np.array([each["score"] for each in ranking["similarities"]])
            points.append((shared, 1 + scores / np.log(count) if measure == "LEEP" else scores))
        varying = [point for point in points if np.ptp(point[0])]
        found += [correlation(*point) for point in varying]
        levels: list[float] = []
        means: list[float] = []
        if varying:
            shared, scores = (np.concatenate(each) for each in zip(*varying, strict=True))
            levels = sorted(set(shared))
            means = [float(scores[shared == level].mean()) for level in levels]
        shared, scores = (np.concatenate(each) for each in zip(*points, strict=True))
        title = f"{len(points)} target{'s' * (len(points) > 1)} of {count} classes"
        drawn.append((title, colour, shared + jitter.uniform(-0.15, 0.15, len(shared)), scores, levels, means))
    within = f"{np.nanmean(found):.2f}" if np.isfinite(found).any() else "n/a"
    name = "Share of the labels' entropy explained, 1 + LEEP / H(y)" if measure == "LEEP" else measure
    about = (
        f"{name}: a dot for each zoo task and target, spread a little sideways;\n"
        f"the line: means. Correlation within a target {within}"
    )
    figure = page(3.9, f"Does {measure} find related tasks?", about)
    widths = [1 + shared.max() for _, _, shared, *_ in drawn]
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (title, colour, shared, scores, levels, means) in zip(panels, drawn, strict=True):
        axes.scatter(shared, scores, s=9, alpha=0.3, color=colour, linewidths=0)
        if levels:
            axes.plot(levels, means, color=colour, marker="o", ms=7, markeredgecolor="white")
        axes.set_title(title, fontsize=9, color=colour)
        axes.set_xticks(range(round(shared.max()) + 1))
    panels[0].set_ylabel("1 + LEEP / H(y)" if measure == "LEEP" else measure)
    figure.supxlabel("classes that zoo task and target share", fontsize=9, color=QUIET)
    return figure


@styled
def widths_per_group(runs: Runs) -> Figure | None:
    """Units kept in each group, in percent, by iterative Taylor and by the vote, mean over targets.

    None where all runs keep the same share of a group, because widths are equal by construction: there is nothing to
    see then. Without a dense run, shares are of the widest model.
    """
    pruned = {method: own for method in ("taylor", "mvp") if (own := [run for run in runs if run["method"] == method])}
    units = {group: max(run["widths"][group] for run in runs) for group in runs[0]["widths"]}
    kept = {
        method: {group: [100 * run["widths"][group] / size for run in own] for group, size in units.items()}
        for method, own in pruned.items()
    }
    spread = {group: np.ptp([share for own in kept.values() for share in own[group]]) for group in units}
    if all(spread[group] <= SAME_WIDTH + 100 / size for group, size in units.items()):
        return None
    whole = "the dense backbone's" if any(run["method"] == "dense" for run in runs) else "the widest model's"
    about = f"Units kept in % of {whole} (in parentheses), mean over {len({run['task'] for run in runs})} targets."
    figure = page(0.24 * len(units) + 1.6, "How wide is each group of units?", about)
    axes = figure.subplots()
    rows = range(len(units))
    axes.hlines(rows, 0, 100, color=LINES, lw=0.8)
    means = {method: [fmean(own[group]) for group in units] for method, own in kept.items()}
    for method, label, colour in (("taylor", METHODS["taylor"].full, SCRATCH), ("mvp", "the vote", VOTE)):
        if method in means:
            axes.plot(means[method], rows, "o", color=colour, label=label, clip_on=False, ms=6, zorder=3)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
    for row in rows:
        ends = sorted((own[row], VOTE if method == "mvp" else SCRATCH) for method, own in means.items())
        axes.annotate(f"{ends[-1][0]:.0f}", (ends[-1][0], row), (8, 0), color=ends[-1][1], **beside)
        if len(ends) > 1 and ends[0][0] < ends[1][0] - 0.5:
            axes.annotate(f"{ends[0][0]:.0f}", (ends[0][0], row), (-8, 0), color=ends[0][1], ha="right", **beside)
    axes.set(xlim=(0, 103), ylim=(len(units) - 0.5, -0.5), xlabel="units kept, %")
    axes.set_yticks(rows, [f"{group}  ({size:,})" for group, size in units.items()])
    axes.grid(False, axis="y")
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 1), labelcolor="linecolor", handletextpad=0.1)
    return figure


@styled
def overlap_by_group(rows: Sequence[OverlapRow]) -> Figure:
    """Mean IoU of two tasks' masks in each group, compared with chance, and what it correlates with.

    Above, a panel for each of three ratios: the mean over pairs (± one standard deviation), the IoU of random masks,
    and that of a task's mask with the backbone's own magnitude mask. Below, a panel for each measure of similarity: the
    correlation over pairs with the IoU at the last ratio, filled where Mantel's p < 0.05. Too few tasks have no
    correlation: then only what is above is drawn.
    """
    levels = sorted({row.pruning_ratio for row in rows})
    groups = [row.group for row in rows if row.pruning_ratio == levels[0]]
    last = [row for row in rows if row.pruning_ratio == levels[-1]]
    measures = [name for name in MEASURES if not all(np.isnan(getattr(row, name)) for row in last)]
    about = "Above: IoU of two tasks' masks, mean over pairs ± one standard deviation."
    if measures:
        about += (
            f"\nBelow: correlation over pairs with that IoU at {levels[-1]:.0%}, filled where p < 0.05 (Mantel's test)."
        )
    parts = 1 + bool(measures)
    figure = page(0.21 * parts * len(groups) + 0.9 * parts + 1.1, "Do similar tasks keep the same units?", about)
    halves: Any = figure.subfigures(parts, 1, squeeze=False)
    above = halves[0, 0]
    panels = above.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    places = np.arange(len(groups))
    for axes, level in zip(panels, levels, strict=True):
        own = [row for row in rows if row.pruning_ratio == level]
        axes.plot([row.random for row in own], places, "|", ms=12, mew=1.6, color=QUIET, label="random masks")
        magnitude = [row.magnitude for row in own]
        axes.plot(magnitude, places, "x", color=NEAREST, label="with the magnitude mask", clip_on=False, zorder=4)
        means, deviations = [row.iou for row in own], [row.deviation for row in own]
        label = "two tasks' masks"
        axes.errorbar(means, places, xerr=deviations, fmt="o", color=VOTE, lw=1.2, label=label, clip_on=False)
        axes.set_title(f"{level:.0%} of units removed", fontsize=9)
        axes.set_xlabel("IoU")
    panels[0].set(xlim=(0, 1.04), xticks=(0, 0.5, 1))
    _rows_of(panels, groups)
    above.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="outside lower center", labelcolor="linecolor")
    if not measures:
        return figure
    found = halves[1, 0].subplots(1, len(measures), sharex=True, sharey=True, squeeze=False)[0]
    for axes, measure in zip(found, measures, strict=True):
        values = np.array([getattr(row, measure) for row in last])
        sure = np.array([getattr(row, f"{measure}_p") < 0.05 for row in last])
        axes.hlines(places, 0, values, color=LINES, lw=1.5)
        axes.axvline(0, color=INK, lw=0.8)
        axes.plot(values[sure], places[sure], "o", color=NEAREST)
        axes.plot(values[~sure], places[~sure], "o", color=NEAREST, markerfacecolor="white")
        axes.set_title(MEASURES[measure], fontsize=9)
        axes.set_xlabel("correlation")
        axes.margins(x=0.12)
    _rows_of(found, groups)
    return figure


def _rows_of(panels: Sequence[Axes], groups: Sequence[str]) -> None:
    """Groups from the first layer down; a line before those that stand for several."""
    panels[0].set_yticks(range(len(groups)), groups)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    several = next((row for row, group in enumerate(groups) if group.startswith("all")), len(groups))
    for axes in panels:
        axes.grid(False, axis="y")
        axes.axhline(several - 0.5, color=LINES, lw=0.8)
