"""A zoo's lineage as a picture: who was grown from whom, and whether entries got better. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_mvp.pictures import DENSE, GROWN, LINES, NEAREST, QUIET, label_ends, page, styled
from lightning_mvp.zoo.lineage import Member

# So many entries can have their names beside them.
MOST_NAMES = 16


@styled
def draw_lineage(members: Sequence[Member], title: str) -> Figure:
    """Each entry by the wave in which it grew and its accuracy on validation data, with lines from its parents.

    Entries whose accuracy is not known stand below the others.

    Args:
        members: of one family, as :func:`~lightning_mvp.zoo.lineage.lineage` gives them.
        title: such as the zoo's name.
    """
    known = [100 * member.accuracy for member in members if member.accuracy is not None]
    floor = min(known, default=50.0) - 0.12 * (np.ptp(known) if len(known) > 1 else 10.0) - 0.5
    heights = [floor if member.accuracy is None else 100 * member.accuracy for member in members]
    places = _places(members)
    at = {member.name: place for member, place in zip(members, zip(places, heights, strict=True), strict=True)}
    lines = [(at[parent], at[member.name]) for member in members for parent in member.parents if parent in at]
    gone = {parent for member in members for parent in member.parents} - at.keys()
    seeds = sum(member.wave == 0 for member in members)
    last = max((member.generation for member in members), default=0)
    about = (
        f"{seeds} seeds, which began with the backbone, and {len(members) - seeds} entries that began with the vote of "
        f"earlier ones: {last} generation{'s' * (last != 1)}.\nA line leads from each entry that voted."
        + (f" Voters that are no longer there: {len(gone)}." if gone else "")
    )
    figure = page(4.6, f"{title}: who was grown from whom?", about)
    axes = figure.subplots()
    # Thousands of lines would be a surface.
    axes.add_collection(LineCollection(lines, colors=DENSE, lw=0.6, alpha=max(0.12, min(0.6, 40 / (len(lines) + 1)))))
    for grown, colour, words in ((False, NEAREST, "seeds"), (True, GROWN, "grown")):
        own = [at[member.name] for member in members if (member.wave > 0) == grown]
        if own:
            axes.plot(*zip(*own, strict=True), "o", color=colour, label=words, ms=6, mec="white", mew=0.6, zorder=3)
    if len(known) < len(members):
        axes.axhline(floor, color=LINES, lw=0.8, ls=":")
        axes.annotate("accuracy not known", (0, floor), (0, 4), textcoords="offset points", color=QUIET, fontsize=8)
    axes.set(xlabel="wave in which an entry joined (0: seeds)", ylabel="validation accuracy, %")
    waves = max((member.wave for member in members), default=0)
    axes.set_xlim(-0.5 - 0.02 * waves, waves + 0.5 + 0.02 * waves)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, labelcolor="linecolor", handletextpad=0.1)
    if len(members) <= MOST_NAMES:
        label_ends(axes, [(*at[member.name], member.task, QUIET) for member in members], 8)
    return figure


def _places(members: Sequence[Member]) -> list[float]:
    """The wave of each, members of one wave a little apart, but nearer to each other than to the next wave."""
    by_wave: dict[int, int] = {}
    sizes = {wave: sum(member.wave == wave for member in members) for wave in {member.wave for member in members}}
    found = []
    for member in members:
        rank = by_wave.setdefault(member.wave, 0)
        by_wave[member.wave] += 1
        found.append(member.wave + 0.5 * ((rank + 0.5) / sizes[member.wave] - 0.5))
    return found
