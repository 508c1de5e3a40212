"""Draws the method: ``python docs/pictures/method.py`` writes ``method.svg`` and ``method.png`` beside this file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from lightning_mvp.pictures import DENSE, GENERIC, INK, LINES, NEAREST, ONCE, QUIET, RANDOM, SHADE, VOTE, styled

HERE = Path(__file__).parent
MIDDLE = 2.21
TASKS = (NEAREST, GENERIC, ONCE, RANDOM, DENSE)
NEIGHBOURS = (0, 1, 2)
# Which units the drawn models have kept: near tasks keep much the same ones.
KEPT = (
    ((1, 1, 0, 1, 0), (1, 0, 1, 1, 0, 1), (0, 1, 1, 0, 1, 1)),
    ((1, 1, 0, 0, 1), (1, 0, 1, 0, 1, 1), (0, 1, 1, 1, 0, 1)),
    ((1, 0, 1, 1, 0), (1, 1, 1, 1, 0, 0), (1, 1, 0, 0, 1, 1)),
    ((0, 1, 1, 0, 1), (0, 1, 0, 1, 1, 1), (1, 0, 1, 1, 1, 0)),
    ((0, 0, 1, 1, 1), (0, 1, 1, 0, 1, 1), (1, 0, 0, 1, 1, 1)),
)


def voted() -> tuple[np.ndarray, ...]:
    """For each group the votes of each unit among the neighbours."""
    return tuple(np.sum([KEPT[task][group] for task in NEIGHBOURS], axis=0) for group in range(len(KEPT[0])))


def winners(votes: np.ndarray) -> np.ndarray:
    """The units with most votes, as many as a neighbour keeps, the first ones of equals."""
    count = 3 if len(votes) == 5 else 4
    kept = np.zeros(len(votes), dtype=bool)
    kept[np.argsort(-votes, kind="stable")[:count]] = True
    return kept


def square(axes: Axes, x: float, y: float, side: float, colour: str | None) -> None:
    """A unit with its middle at a point; without a colour it was removed."""
    look = (
        {"facecolor": "white", "edgecolor": "#B4BEC8", "lw": 0.8} if colour is None else {"facecolor": colour, "lw": 0}
    )
    axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, **look))


def network(axes: Axes, x: float, y: float, step: float, kept: Sequence[Sequence[int]], colour: str) -> None:
    """A model as columns of units, with its first column at a point."""
    for group, flags in enumerate(kept):
        for place, alive in enumerate(flags):
            up = y + step * (0.5 * (len(flags) - 1) - place)
            square(axes, x + 1.3 * step * group, up, 0.74 * step, colour if alive else None)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A thin arrow."""
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, **look))


def card(axes: Axes, x: float, y: float, width: float, height: float, edge: str = LINES, face: str = "white") -> None:
    """A rounded frame with its lower left corner at a point."""
    shape = f"round,pad=0,rounding_size={min(0.12, height / 3)}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=face, edgecolor=edge, lw=1))


@styled
def draw() -> Figure:
    """Zoo, neighbours, vote, small model, from left to right, as wide as a page."""
    figure = Figure(figsize=(10, 4.15))
    figure.patch.set_facecolor("white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(0, 4.15), aspect="equal")
    axes.axis("off")

    def heading(x: float, number: str, words: str, about: str, of_task: str = "") -> None:
        axes.text(x, 3.86, f"{number}  {words}", ha="center", va="center", fontsize=14.5, weight="bold", color=INK)
        axes.text(x, 0.62, about, ha="center", va="center", fontsize=11.5, color=QUIET)
        colour, weight = (VOTE, "bold") if "new task" in of_task else (QUIET, "normal")
        axes.text(x, 0.38, of_task, ha="center", va="center", fontsize=11.5, color=colour, weight=weight)

    heading(1.22, "1", "Zoo", "one backbone, pruned", "for each earlier task")
    card(axes, 0.2, 0.92, 2.04, 2.66, face=SHADE)
    for task, colour in enumerate(TASKS):
        y = 3.27 - 0.47 * task
        network(axes, 0.62, y, 0.073, KEPT[task], colour)
        axes.text(1.12, y, f"task {'ABCDE'[task]}", va="center", fontsize=11.5, color=colour)
    for x, colour, words in ((0.47, QUIET, "unit kept"), (1.36, None, "removed")):
        square(axes, x, 1.05, 0.08, colour)  # type: ignore[arg-type]
        axes.text(x + 0.1, 1.05, words, va="center", fontsize=9.5, color=QUIET)

    heading(3.78, "2", "Neighbours", "the tasks most similar", "to the new task")
    for place, task in enumerate(NEIGHBOURS):
        y = 3.05 - 0.84 * place
        arrow(axes, (2.3, 3.27 - 0.47 * task), (3.2, y), TASKS[task])
        network(axes, 3.42, y, 0.115, KEPT[task], TASKS[task])
        axes.text(3.96, y, f"task {'ABC'[task]}", va="center", fontsize=11.5, color=TASKS[task])
        arrow(axes, (4.62, y), (5.34, MIDDLE + 0.36 * (1 - place)), TASKS[task])

    heading(6.2, "3", "Vote", "units with most votes stay,", "their weights averaged")
    for group, votes in enumerate(voted()):
        left = 5.62 + 0.5 * group
        for place, stays in enumerate(winners(votes)):
            up = MIDDLE + 0.27 * (0.5 * (len(votes) - 1) - place)
            if stays:
                card(axes, left - 0.1, up - 0.115, 0.42, 0.23, edge="none", face="#F9D9C3")
            for vote, task in enumerate(NEIGHBOURS):
                square(axes, left + 0.11 * vote, up, 0.09, TASKS[task] if KEPT[task][group][place] else None)
    arrow(axes, (7.06, MIDDLE), (7.76, MIDDLE), VOTE)

    heading(8.8, "4", "Small model", "fine-tuned in few steps", "on the new task")
    small = [[1] * int(winners(votes).sum()) for votes in voted()]
    network(axes, 8.1, MIDDLE, 0.23, small, VOTE)
    axes.add_patch(Polygon([(9.02, 2.77), (9.02, 1.65), (9.34, 1.87), (9.34, 2.55)], facecolor=VOTE, alpha=0.22, lw=0))
    axes.text(9.45, MIDDLE, "head", va="center", fontsize=11.5, color=VOTE)
    return figure


def main() -> None:
    figure = draw()
    for name in ("method.svg", "method.png"):
        metadata = {"Date": None} if name.endswith("svg") else None
        figure.savefig(HERE / name, dpi=160, metadata=metadata)
        print(f"wrote {HERE / name}", file=sys.stderr)


if __name__ == "__main__":
    main()
