"""The neighbours of a vote as a picture: how near each is, how much it counted, what it has in common with the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.pictures import LINES, NEAREST, QUIET, RANDOM, VOTE, page, styled


@styled
def draw_neighbours(report: Mapping[str, Any], task: str) -> Figure:
    """A row for each entry that voted, best first: its score, its share of the votes, and the classes that it shares.

    Args:
        report: as :meth:`~lightning_mvp.voting.report.VoteReport.to_dict` gives it, or ``report.json`` of `mvp-vote`:
            of it ``neighbours``, ``coefficients`` and ``entries``.
        task: the name of the new task.
    """
    neighbours = report["neighbours"]
    total = sum(report["coefficients"].values())
    shares = [100 * report["coefficients"][each["name"]] / total for each in neighbours]
    shared = [each["shared_classes"] for each in neighbours]
    known = any(count is not None for count in shared)
    of = f" of {report['entries']:,} entries" if report.get("entries") else ""
    about = f"{len(neighbours)}{of} of the zoo voted, nearest first."
    figure = page(0.27 * len(neighbours) + 1.6, f"Who voted for {task}?", about)
    panels = figure.subplots(1, 2 + known, sharey=True, width_ratios=(3, 2, 2)[: 2 + known])
    panels[0].set_yticks(range(len(neighbours)), [each["name"].rpartition("--")[0] for each in neighbours])
    panels[0].set_ylim(len(neighbours) - 0.4, -0.6)
    scores = [each["score"] for each in neighbours]
    _dots(panels[0], scores, NEAREST)
    panels[0].set_title("score (greater is nearer)")
    _bars(panels[1], shares, [f"{share:.0f} %" if share >= 1 else f"{share:.1f} %" for share in shares], VOTE)
    panels[1].set_title("share of the votes")
    if known:
        counts = [count or 0 for count in shared]
        _bars(panels[2], counts, ["–" if count is None else str(count) for count in shared], RANDOM)
        panels[2].set_title("classes in common")
    for axes in panels:
        axes.grid(False)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
    return figure


def _dots(axes: Axes, values: Sequence[float], colour: str) -> None:
    """Dots with their values: scores have no zero to begin a bar at."""
    rows = range(len(values))
    air = 0.12 * (max(values) - min(values)) or 0.5
    axes.set_xlim(min(values) - air, max(values) + 4 * air)
    axes.hlines(rows, min(values) - air, values, color=LINES, lw=1)
    axes.plot(values, rows, "o", color=colour, ms=6)
    for row, value in zip(rows, values, strict=True):
        _write(axes, f"{value:.3f}".replace("-", "−"), value, row)


def _bars(axes: Axes, values: Sequence[float], words: Sequence[str], colour: str) -> None:
    axes.barh(range(len(values)), values, 0.62, color=colour)
    axes.set_xlim(0, 1.35 * max(*values, 1e-9))
    for row, (value, text) in enumerate(zip(values, words, strict=True)):
        _write(axes, text, value, row)


def _write(axes: Axes, text: str, x: float, row: int) -> None:
    axes.annotate(text, (x, row), (7, 0), textcoords="offset points", va="center", color=QUIET, fontsize=8.5)
