"""The report of a vote, in numbers and as a table."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.voting.ranking import Neighbour
from lightning_mvp.voting.trust import Evidence, nearest_words
from lightning_mvp.words import counted


@dataclass(frozen=True)
class VoteReport:
    """What `voted_backbone` did.

    Args:
        neighbours: the entries that voted, best first.
        coefficients: entry name → how much its vote and its weights counted.
        masks: the units that won the vote.
        widths: group → number of units kept.
        sizes: group → number of units before the vote.
        shares: fractions of the weights that came from "0", "1" and ">=2" neighbours.
        parameters: number of parameters of the voted backbone.
        dense_parameters: number of parameters of the dense backbone.
        macs: multiply-accumulates of one image through the voted backbone.
        dense_macs: multiply-accumulates of one image through the dense backbone.
        seconds: stage → wall time.
        evidence: what LEEP says about the task; None where it was not computed.
        scored: number of entries that were read and scored; 0 where the ranking was made by hand.
        entries: number of entries that might have voted; 0 where the ranking was made by hand.
    """

    neighbours: tuple[Neighbour, ...]
    coefficients: dict[str, float]
    masks: Masks
    widths: dict[str, int]
    sizes: dict[str, int]
    shares: dict[str, float]
    parameters: int
    dense_parameters: int
    macs: int
    dense_macs: int
    seconds: dict[str, float]
    evidence: Evidence | None = None
    scored: int = 0
    entries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the masks are represented by their fingerprint."""
        neighbours = [asdict(neighbour) for neighbour in self.neighbours]
        return {**asdict(self), "neighbours": neighbours, "masks": self.masks.fingerprint}

    def table(self) -> Table:
        """Neighbours, widths, shares and size against the dense backbone, for `rich.print`."""
        table = Table(
            "what", "value", title=f"Vote of {counted(len(self.neighbours), 'neighbour')}", title_justify="left"
        )
        for neighbour in self.neighbours:
            shared = (
                ""
                if neighbour.shared_classes is None
                else f", {counted(neighbour.shared_classes, 'shared class', 'shared classes')}"
            )
            share = self.coefficients[neighbour.name] / sum(self.coefficients.values())
            table.add_row(neighbour.name, f"score {neighbour.score:.3f}{shared}, weight {share:.2f}")
        if self.evidence is not None:
            table.add_row("LEEP", nearest_words(self.evidence))
        if self.scored < self.entries:
            table.add_row("looked at", f"{self.scored} of {self.entries} entries")
        table.add_section()
        for group, width in self.widths.items():
            table.add_row(f"units of {group}", f"{width} of {self.sizes[group]}")
        table.add_section()
        for count, words in (("0", "no neighbour"), ("1", "one"), (">=2", "two or more")):
            table.add_row(f"entries from {words}", f"{self.shares[count]:.1%}")
        table.add_section()
        for label, small, dense in (
            ("units", sum(self.widths.values()), sum(self.sizes.values())),
            ("parameters", self.parameters, self.dense_parameters),
            ("MACs", self.macs, self.dense_macs),
        ):
            table.add_row(label, f"{small:,} of {dense:,} ({small / dense:.1%})")
        table.add_row("seconds", ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items()))
        return table

    def summary(self) -> str:
        """The table as plain text, for logs."""
        console = Console(width=100, file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    __rich__ = table
