"""How all pictures look: one palette, one page width, labels beside what they name. Needs no torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.files import write_whole

P = ParamSpec("P")
T = TypeVar("T")

# Colours that colour-blind people can tell apart (after Okabe and Ito), each dark enough for text on white.
VOTE = "#C44E00"
GROWN = "#B07800"
NEAREST = "#0A5FA8"
RANDOM = "#2684B8"
GENERIC = "#00805E"
ONCE = "#A8447C"
SCRATCH = "#1F2933"
DENSE = "#66717E"
PALETTE = (NEAREST, VOTE, GENERIC, ONCE, RANDOM, GROWN, SCRATCH, DENSE)

INK = "#1F2933"
QUIET = "#5F6B7A"  # what is read second: units, captions
LINES = "#CBD2D9"
GRID = "#E9EDF1"
SHADE = "#F5F7FA"
# From little to much; the same in grey.
SEQUENCE = "viridis"

# Inches: every picture is as wide as a page, so that its letters are as large as those of the next one.
WIDTH = 8.0
DPI = 150
# More lines than this in one panel can't be told apart.
MOST_SERIES = 6

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9,
    "axes.edgecolor": LINES,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": LINES,
    "ytick.color": LINES,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "lightning-mvp",
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """A drawing function whose figures look like all others, whatever the user's own matplotlib settings are."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> T:
        plain: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
        with matplotlib.rc_context({**plain, **STYLE, "backend": matplotlib.rcParams["backend"]}):
            return draw(*args, **options)

    return drawn


def page(height: float, title: str, about: str = "", width: float = WIDTH) -> Figure:
    """An empty figure with its title at the left, and below it in grey what the reader must know.

    Args:
        height: in inches.
        title: what is found, or asked.
        about: units, numbers of targets, what intervals are; may have several lines.
        width: in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    lines = about.count("\n") + bool(about)
    # The title of a figure is placed by the layout; what is about it is a part of the same text, so it never overlaps.
    figure.suptitle(title + "\n" * lines, x=0.012, ha="left", fontsize=11.5, fontweight="bold", linespacing=1.35)
    if about:
        # 9 points below a title of 11.5, both with some air.
        down = (0.02 * 72 + 11.5 * 1.6) / 72 / height
        figure.text(0.012, 1 - down, about, va="top", ha="left", fontsize=9, color=QUIET, linespacing=1.35)
    return figure


def chunks(items: Sequence[T], most: int = MOST_SERIES) -> Iterator[Sequence[T]]:
    """Parts of at most so many items, as even as can be.

    Example:
        >>> [list(part) for part in chunks("abcdefgh", 6)]
        [['a', 'b', 'c', 'd'], ['e', 'f', 'g', 'h']]
    """
    parts = max(1, -(-len(items) // most))
    edges = [round(len(items) * part / parts) for part in range(parts + 1)]
    for first, last in pairwise(edges):
        yield items[first:last]


def apart(places: Sequence[float], distance: float) -> list[float]:
    """Places moved as little as needed, so that neighbours are so far apart; their order stays.

    Example:
        >>> apart([1.0, 1.0, 5.0], 1.0)
        [0.5, 1.5, 5.0]
    """
    order = np.argsort(np.asarray(places, dtype=float), kind="stable")
    blocks: list[tuple[float, int]] = []  # neighbours that touch: the sum of the starts that they want, their number
    for index in order:
        total, count = float(places[index]), 1
        while blocks and blocks[-1][0] / blocks[-1][1] + blocks[-1][1] * distance > total / count:
            before, members = blocks.pop()
            total, count = before + total - count * members * distance, members + count
        blocks.append((total, count))
    found = [total / count + member * distance for total, count in blocks for member in range(count)]
    return [found[rank] for rank in np.argsort(order)]


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 8.5) -> None:
    """Names to the right of points such as the ends of lines, in their colours, moved apart where they would overlap.

    Call it last: when the axes have their limits, and the figure all that takes room.

    Args:
        axes: of the lines.
        ends: x, y, name and colour of each.
        size: of the letters, in points.
    """
    if not ends:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # only then the axes have their height
    low, high = axes.get_ylim()
    points = 72 * axes.get_window_extent().height / figure.dpi / (high - low)  # of paper for one unit of the axis
    moved = apart([points * y for _, y, _, _ in ends], 1.3 * size)
    for (x, y, name, colour), place in zip(ends, moved, strict=True):
        up = place - points * y
        pointer = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            name,
            (x, y),
            (7, up),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=size,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75},  # over lines
            arrowprops=pointer if abs(up) > size else None,
        )


def points_text(value: float, digits: int = 1) -> str:
    """A number with its sign, a minus as long as a plus.

    Example:
        >>> points_text(-1.25), points_text(2.0)
        ('−1.2', '+2.0')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def save_figure(path: Path, figure: Figure, *, overwrite: bool = True) -> None:
    """Write a figure in the format of its file's name, whole or not at all.

    Args:
        path: of the picture; without an ending it is a PNG.
        figure: what was drawn.
        overwrite: whether a file that is there is replaced.

    Raises:
        FileExistsError: the file is there, and is not to be replaced.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png", dpi=DPI)
    write_whole(path, drawn.getvalue(), overwrite=overwrite)


def save_beside(path: Path, draw: Callable[[], Figure]) -> bool:
    """Draw a picture and write it to a file. If that fails, warn and go on: the result that it shows is safe already.

    Args:
        path: of the picture; what is there is replaced.
        draw: makes the figure.

    Returns:
        Whether the picture was written.

    Warns:
        UserWarning: it could not be drawn or written; nothing is at ``path`` then that was not there before.
    """
    try:
        save_figure(path, draw())
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"The picture {path} could not be made ({what}). All else is done.", stacklevel=2)
        return False
    return True
