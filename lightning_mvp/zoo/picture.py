"""A zoo on one page: tasks by tasks, the units they share beside how alike they are. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from lightning_mvp.pictures import SEQUENCE, page, styled
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.kinship import mask_overlap, similarities

MEASURES = {"prototypes": "prototype similarity", "shared classes": "classes in common"}

# More names than this on an axis can't be read: every second, third ... is written then.
MOST_LABELS = 64
# As many tasks as this have room for numbers in their cells.
MOST_NUMBERS = 16


@dataclass(frozen=True)
class Relations:
    """Tasks by tasks, in an order that puts similar ones side by side.

    Args:
        names: the names of the entries.
        tasks: the names of their tasks.
        classes: the names of each task's classes.
        iou: IoU of their masks ``(n, n)``, see :func:`~lightning_mvp.zoo.kinship.mask_overlap`.
        random_iou: the IoU to be expected of random masks of the same widths ``(n, n)``.
        similarity: how alike the tasks are ``(n, n)``.
        measure: what the similarity is: "prototypes" or "shared classes".
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    iou: np.ndarray
    random_iou: np.ndarray
    similarity: np.ndarray
    measure: str

    def pairs(self, matrix: np.ndarray) -> np.ndarray:
        """The entries of a matrix for two different tasks, each pair once."""
        return matrix[np.triu_indices(len(self.names), 1)]

    @property
    def correlation(self) -> float | None:
        """Pearson's r of overlap and similarity over all pairs; None where one of them doesn't vary."""
        iou, similarity = self.pairs(self.iou), self.pairs(self.similarity)
        if np.ptp(iou) < 1e-12 or np.ptp(similarity) < 1e-12:
            return None
        return float(np.corrcoef(iou, similarity)[0, 1])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: means over pairs, and the order."""
        means = {name: float(self.pairs(getattr(self, name)).mean()) for name in ("iou", "random_iou", "similarity")}
        return {"entries": list(self.names), "measure": self.measure, **means, "correlation": self.correlation}


def relations(entries: Sequence[ZooEntry]) -> Relations:
    """Overlap and similarity of each task with each, ordered by average-linkage clustering of the similarity.

    Args:
        entries: of one zoo and one config.

    Raises:
        ValueError: fewer than two entries.
    """
    if len(entries) < 2:
        raise ValueError(
            f"Expected at least two sound entries of one config to compare, but got {len(entries)}. Fill the zoo with "
            "`mvp-prune`."
        )
    masks = [entry.masks for entry in entries]
    iou, random_iou = mask_overlap(masks, masks)
    similarity, measure = similarities(entries)
    order = clustered(similarity)
    square = np.ix_(order, order)
    return Relations(
        tuple(entries[index].name for index in order),
        tuple(entries[index].facts["name"] for index in order),
        tuple(tuple(map(str, entries[index].facts["classes"])) for index in order),
        iou[square],
        random_iou[square],
        similarity[square],
        measure,
    )


def clustered(similarity: np.ndarray) -> list[int]:
    """An order in which similar rows are neighbours: leaves of average linkage, best turned (Bar-Joseph et al., 2001).

    Args:
        similarity: symmetric ``(n, n)``, n ≥ 2, greater is nearer.

    Example:
        >>> alike = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]])
        >>> clustered(alike) in ([0, 2, 1], [1, 2, 0])
        True
    """
    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    return [int(leaf) for leaf in leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))]


@styled
def draw_relations(found: Relations, title: str) -> Figure:
    """Two maps of pairs side by side, in the same order: units in common, from chance on, and similarity.

    Each pair is drawn once, below the diagonal. Rows say the classes of their tasks where there is room.

    Args:
        found: for two tasks or hundreds; names are thinned where they can't be read.
        title: of the page, such as the zoo's name.
    """
    iou, chance, similarity = (found.pairs(matrix) for matrix in (found.iou, found.random_iou, found.similarity))
    digits = 2 if found.measure == "prototypes" else 0
    r = "not defined" if found.correlation is None else f"r = {found.correlation:.2f}"
    about = (
        f"{len(found.names)} tasks, each pair once, similar tasks side by side. Correlation of overlap and similarity "
        f"over {len(iou):,} pair{'s' * (len(iou) > 1)}: {r}"
    )
    figure = page(7.8, f"{title}: do similar tasks keep the same units?", about, width=16)
    left, right = figure.subplots(1, 2)
    left.set_title(
        f"Overlap: IoU of the units kept, {_spread(iou, 2)}\nrandom masks of the same widths: {_spread(chance, 2)}"
    )
    right.set_title(
        f"Similarity: {MEASURES[found.measure]}, {_spread(similarity, digits)}\ntasks in the same order as on the left"
    )
    words = [_with_classes(task, classes) for task, classes in zip(found.tasks, found.classes, strict=True)]
    _triangle(left, found.iou, words, found.tasks, "IoU", 2, float(chance.mean()))
    _triangle(
        right, found.similarity, list(map(_shortened, found.tasks)), found.tasks, MEASURES[found.measure], digits, None
    )
    return figure


def _triangle(
    axes: Axes,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    digits: int,
    low: float | None,
) -> None:
    """The pairs below the diagonal. Colours begin at `low`, which is chance, and below it all are alike."""
    count = len(rows)
    shown = np.where(np.tri(count, k=-1, dtype=bool), matrix, np.nan)[1:, :-1]
    high, least = float(np.nanmax(shown)), float(np.nanmin(shown))
    bottom = least if low is None else min(low, high)
    top = high if high > bottom else bottom + 1e-6
    image = axes.imshow(shown, cmap=SEQUENCE, interpolation="nearest", vmin=bottom, vmax=top)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")
    step = -(-(count - 1) // MOST_LABELS)
    ticks = list(range(0, count - 1, step))
    size = min(9.5, 360 / len(ticks))  # points: a panel is some five inches wide
    axes.set_xticks(ticks, [_shortened(columns[tick]) for tick in ticks], rotation=90, fontsize=size)
    axes.set_yticks(ticks, [rows[tick + 1] for tick in ticks], fontsize=size)
    axes.tick_params(length=0)
    if step > 1:
        axes.set_xlabel(f"every {_ordinal(step)} task is named", fontsize=9)
    if count > 2:  # in the empty half; a single cell says its number
        inside = axes.inset_axes((0.56, 0.93, 0.4, 0.025))
        extend = "neither" if low is None or least >= low else "min"
        bar = axes.figure.colorbar(image, cax=inside, orientation="horizontal", extend=extend)
        bar.outline.set_visible(False)  # type: ignore[operator]
        above = [
            tick for tick in MaxNLocator(4).tick_values(bottom, top) if bottom + 0.2 * (top - bottom) < tick <= top
        ]
        chance = "" if low is None else "\nchance"
        labels = [f"{bottom:.{digits}f}{chance}", *(f"{tick:.{digits}f}" for tick in above)]
        bar.set_ticks([bottom, *above], labels=labels)
        inside.set_title(label, fontsize=8.5, fontweight="normal")
    if count <= MOST_NUMBERS:
        _write_numbers(axes, shown, digits)


def _with_classes(task: str, classes: Sequence[str], most: int = 34) -> str:
    """The name of a task followed by its classes, as in ``"pets: cat, dog"``.

    A list of classes with more than ``most`` characters is shortened, and ends in "…".
    """
    words = _shortened(task)
    names = ", ".join(classes)
    if not names:
        return words
    return f"{words}: {names if len(names) <= most else names[: most - 1].rstrip(', ') + '…'}"


def _write_numbers(axes: Axes, shown: np.ndarray, digits: int) -> None:
    image = axes.images[0]
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(shown):
        if not np.isnan(value):
            colour = "white" if value < (low + high) / 2 else "black"
            size = min(9, 110 / len(shown))
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=size)


def _shortened(name: str, most: int = 24) -> str:
    # The middle goes: what tells names apart is often the number at their end.
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _spread(values: np.ndarray, digits: int) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return f"{low} everywhere" if low == high else f"mean {values.mean():.2f} ({low} to {high})"
