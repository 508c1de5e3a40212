"""Pictures of a model that is being pruned, for loggers: what each group keeps, and which units."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lightning_mvp.backbones.masks import Masks

KEPT, GONE, NOTHING = "#0072B2", "#D9D9D9", "#FFFFFF"  # of Okabe and Ito; grey; where a group has no more units


def kept_figure(masks: Masks, round_: int, rounds: int) -> Figure:
    """A bar for each group: the units that it keeps, in percent.

    Args:
        masks: the units kept.
        round_: rounds done.
        rounds: how many there will be.
    """
    names, sizes = list(masks), masks.sizes
    shares = [100 * masks.kept[name] / sizes[name] for name in names]
    figure, axes = _framed(len(names), f"Units kept after round {round_} of {rounds}")
    bars = axes.barh(names, shares, color=KEPT)
    axes.bar_label(bars, [f"{masks.kept[name]:,} of {sizes[name]:,}" for name in names], padding=3, fontsize=8)
    axes.set(xlim=(0, 130), xticks=(0, 25, 50, 75, 100), xlabel="units kept, %")
    axes.spines["bottom"].set_bounds(0, 100)
    axes.invert_yaxis()
    return figure


def masks_figure(masks: Masks, round_: int, rounds: int) -> Figure:
    """A row for each group, a cell for each of its units: whether it is kept. Arguments as for :func:`kept_figure`.

    Groups are drawn at equal length, whatever their number of units.
    """
    names, widest = list(masks), max(masks.sizes.values())
    cells = np.stack([np.asarray(masks[name])[np.arange(widest) * len(masks[name]) // widest] for name in names])
    figure, axes = _framed(len(names), f"After round {round_} of {rounds}: blue units are kept, grey ones are gone")
    axes.imshow(cells, aspect="auto", interpolation="nearest", cmap=ListedColormap([GONE, KEPT]), vmin=0, vmax=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", axis="y", color=NOTHING, linewidth=3)
    axes.tick_params(which="minor", length=0)
    axes.set(xticks=[], xlabel="units of the group, the first at the left")
    return figure


def _framed(rows: int, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 1.2 + 0.28 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
