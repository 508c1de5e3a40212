"""Pictures of a model that is being pruned, for loggers: what each group keeps, and which units."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pictures import LINES, NEAREST, page, styled

KEPT, GONE = NEAREST, LINES


@styled
def kept_figure(masks: Masks, round_: int, rounds: int) -> Figure:
    """A bar for each group: the units that it keeps, in percent.

    Args:
        masks: the units kept.
        round_: rounds done.
        rounds: how many there will be.
    """
    names, sizes = list(masks), masks.sizes
    shares = [100 * masks.kept[name] / sizes[name] for name in names]
    figure = page(_height(masks), f"Units kept after round {round_} of {rounds}")
    axes = figure.subplots()
    bars = axes.barh(names, shares, color=KEPT)
    axes.bar_label(bars, [f"{masks.kept[name]:,} of {sizes[name]:,}" for name in names], padding=3, fontsize=8)
    axes.set(xlim=(0, 118), xticks=(0, 25, 50, 75, 100), xlabel="units kept, %")
    axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    return figure


@styled
def masks_figure(masks: Masks, round_: int, rounds: int) -> Figure:
    """A row for each group, a cell for each of its units: whether it is kept. Arguments as for :func:`kept_figure`.

    Groups are drawn at equal length, whatever their number of units.
    """
    names, widest = list(masks), max(masks.sizes.values())
    cells = np.stack([np.asarray(masks[name])[np.arange(widest) * len(masks[name]) // widest] for name in names])
    figure = page(_height(masks), f"After round {round_} of {rounds}: blue units are kept, grey ones are gone")
    axes = figure.subplots()
    axes.grid(False)
    axes.imshow(cells, aspect="auto", interpolation="nearest", cmap=ListedColormap([GONE, KEPT]), vmin=0, vmax=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=3)
    axes.tick_params(which="minor", length=0)
    axes.set(xticks=[], xlabel="units of the group, the first at the left")
    return figure


def _height(masks: Masks) -> float:
    """Inches for a row for each group."""
    return 1.2 + 0.28 * len(masks)
