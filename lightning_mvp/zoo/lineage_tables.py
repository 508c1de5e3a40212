"""Who came from whom, on the screen. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lightning_mvp.zoo.entry_file import shown
from lightning_mvp.zoo.generations import Generation
from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.tables import UNKNOWN, percent


def lineage_table(members: Sequence[Member], title: str, there: Collection[str]) -> Table:
    """A row for each entry, by wave and name.

    Args:
        members: of one family.
        title: of the table; may be empty.
        there: names of the entries that the zoo has: parents that are gone get a †.
    """
    table = Table(title=escape(title) or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("wave", justify="right")
    table.add_column("generation", justify="right")
    table.add_column("entry", overflow="fold")
    table.add_column("accuracy", justify="right")
    table.add_column("parents", overflow="fold")
    for member in members:
        parents = [_shown(name) + ("" if name in there else " †") for name in member.parents]
        table.add_row(
            str(member.wave),
            str(member.generation),
            _shown(member.name),
            percent(member.accuracy),
            ", ".join(parents) or "the backbone",
        )
    return table


def generations_table(generations: Sequence[Generation]) -> Table:
    """A row for each generation."""
    table = Table(title="Masks by generation", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("generation", "entries", "IoU of pairs", "random", "IoU with parents", "mean accuracy"):
        table.add_column(heading, justify="right")
    for each in generations:
        numbers = (UNKNOWN if v is None else f"{v:.2f}" for v in (each.iou, each.random_iou, each.parents_iou))
        table.add_row(str(each.number), str(each.entries), *numbers, percent(each.accuracy))
    return table


def _shown(name: str) -> str:
    return escape(shown(Path(name)))
