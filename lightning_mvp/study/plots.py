"""The pictures of a comparison, drawn from the records of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.study.overlap import magnitude_masks, overlap
from lightning_mvp.study.results import interval
from lightning_mvp.study.settings import METHODS, StudySettings
from lightning_mvp.zoo.rebuild import entry_masks
from lightning_mvp.zoo.zoo import ModelZoo

Runs = Sequence[dict[str, Any]]

# Colour-blind-safe (Okabe and Ito), MVP in the strongest.
COLOURS = dict(
    zip(
        METHODS,
        ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#000000", "#000000", "#999999", "#999999"),
        strict=True,
    )
)


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


def accuracy_against_steps(runs: Runs) -> Figure:
    """Mean test accuracy with its 95 % interval against optimizer steps, a line for each method."""
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(run["method"] for run in runs):
        own = _of(runs, method)
        steps = [step for step, _ in own[0]["curve"]]
        points = [interval([run["curve"][index][1] for run in own]) for index in range(len(steps))]
        means = np.array([100 * point.mean for point in points])
        # One target has no interval.
        half = np.nan_to_num([100 * point.half for point in points])
        style = "--" if method.endswith("_10x") else "-"
        axes.plot(steps, means, style, color=COLOURS[method], marker="o", markersize=3, label=METHODS[method].full)
        axes.fill_between(steps, means - half, means + half, color=COLOURS[method], alpha=0.08, linewidth=0)
    axes.set_xscale("symlog", linthresh=5)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.set(xlabel="optimizer steps on the new task", ylabel="test accuracy (%)")
    axes.set_title("Accuracy against steps: mean over targets, 95 % interval shaded", fontsize=11)
    axes.grid(alpha=0.3)
    # Below: wherever it stood inside, it would hide some line.
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside lower center")
    return figure


def similarity_against_shared_classes(runs: Runs, measure: str = "LEEP") -> Figure:
    """Similarity of every zoo task to every target against the number of classes the two share."""
    points = [point for run in _of(runs, "mvp") for point in run["similarities"]]
    shared = np.array([point["shared_classes"] for point in points], dtype=float)
    scores = np.array([point["score"] for point in points])
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(shared))
    axes.scatter(shared + spread, scores, s=14, alpha=0.6, color=COLOURS["nearest"], linewidths=0)
    levels = sorted(set(shared))
    axes.plot(
        levels, [scores[shared == level].mean() for level in levels], color=COLOURS["mvp"], marker="o", label="mean"
    )
    best = " (0 is best)" if measure == "LEEP" else ""
    axes.set(xlabel="classes that zoo task and target share", ylabel=f"{measure}{best}")
    title = f"Does {measure} find related tasks? correlation {correlation(shared, scores):.2f}"
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def overlap_against_similarity(
    runs: Runs, zoo_masks: dict[str, Masks], theta0_mask: Masks, measure: str = "LEEP"
) -> Figure:
    """IoU of a target's own Taylor mask with each zoo mask, against similarity, a panel for each group.

    Beside it the value expected of random masks, and the IoU of the target's mask with θ⁰'s own magnitude mask.
    """
    own = {run["task"]: _as_masks(run, zoo_masks) for run in _of(runs, "taylor_10x")}
    points: dict[str, list[tuple[float, float, float]]] = {}
    for run in _of(runs, "mvp"):
        for similar in run["similarities"]:
            if run["task"] in own and similar["name"] in zoo_masks:
                for group, (iou, expected) in overlap(own[run["task"]], zoo_masks[similar["name"]]).items():
                    points.setdefault(group, []).append((similar["score"], iou, expected))
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, (group, values) in zip(panels, points.items(), strict=False):
        score, iou, expected = np.array(values).T
        axes.scatter(score, iou, s=8, alpha=0.5, color=COLOURS["nearest"], linewidths=0)
        axes.axhline(expected.mean(), color="black", linestyle="--", linewidth=1, label="random masks")
        magnitude = fmean(mask.iou(theta0_mask)[group] for mask in own.values())
        axes.axhline(magnitude, color=COLOURS["mvp"], linestyle=":", linewidth=1.5, label="θ⁰'s magnitude mask")
        axes.set_title(f"{group} (mean {iou.mean():.2f}, r = {correlation(score, iou):.2f})", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in list(panels)[len(points) :]:
        axes.set_visible(False)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel(f"{measure} of the zoo task on the target", fontsize=10)
    figure.supylabel("IoU of their masks", fontsize=10)
    figure.suptitle("Masks of a target's own Taylor pruning and of zoo tasks", fontsize=11)
    return figure


def _as_masks(run: dict[str, Any], zoo_masks: dict[str, Masks]) -> Masks:
    import torch

    sizes = {name: len(mask) for name, mask in next(iter(zoo_masks.values())).items()}
    masks = {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
    for name, kept in run["masks"].items():
        masks[name][kept] = True
    return Masks(masks)


def widths_per_group(runs: Runs) -> Figure:
    """Units of the dense backbone, of iterative Taylor and of the vote in each group, mean over targets."""
    dense = _of(runs, "dense") or _of(runs, "dense_10x")
    series = {"dense backbone": dense, METHODS["taylor_10x"].full: _of(runs, "taylor_10x"), "voted": _of(runs, "mvp")}
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


def draw_all(folder: Path, settings: StudySettings, runs: Runs) -> list[tuple[str, str]]:
    """Draw what the runs allow as PNG files into ``folder``.

    Returns:
        File names and captions.
    """
    methods = {run["method"] for run in runs}
    figures = [("accuracy.png", "Test accuracy against optimizer steps on the new task.", accuracy_against_steps(runs))]
    if "mvp" in methods:
        similarity = settings.vote.get("similarity", "leep")
        measure = "LEEP" if similarity in ("leep", "farthest") else f"Similarity ({similarity})"
        caption = f"{measure} of each zoo task on each target against the number of classes they share."
        figures.append(("leep.png", caption, similarity_against_shared_classes(runs, measure)))
        if "taylor_10x" in methods:
            zoo = ModelZoo(folder / "zoo")
            masks = {entry.name: entry_masks(entry) for entry in zoo.entries()}
            theta0_mask = magnitude_masks(zoo, _of(runs, "taylor_10x")[0]["widths"])
            caption = (
                "IoU of a target's own iterative Taylor mask (10 × the steps) with each zoo task's mask against "
                f"{measure}, per group; dashed: expected of random masks of the same widths; dotted: the "
                "target's mask with θ⁰'s own magnitude mask."
            )
            figures.append(("overlap.png", caption, overlap_against_similarity(runs, masks, theta0_mask, measure)))
        figures.append(("widths.png", "Units per group: dense, iterative Taylor, voted.", widths_per_group(runs)))
    for name, _, figure in figures:
        figure.savefig(folder / name, dpi=130)
    return [(name, caption) for name, caption, _ in figures]
