"""The coverage tables in Markdown: a row for each model, and the reasons why parts of it are left out."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"
BEGIN, END = "<!-- coverage table: benchmarks/coverage.py writes it -->", "<!-- end of coverage table -->"
FAMILIES_BEGIN = "<!-- families: benchmarks/coverage.py --families writes it -->"
FAMILIES_END = "<!-- end of families -->"
RATIOS = (0.5, 0.9)  # of units that random masks remove
TRAINING_BATCH = 32  # images of a training step
TURNS = 7  # in which the dense and the small models are timed
FULL_SIZE = 224  # side of the images for MACs and latency


@dataclass
class Structure:
    """What follows from the architecture alone: the same on every machine."""

    model: str
    groups: dict[str, int] = field(default_factory=dict)  # kind → number of groups
    units: int = 0
    left_out: list[str] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)  # ratio of units removed → share that remains
    macs: dict[str, float] = field(default_factory=dict)
    refusal: str = ""


@dataclass
class Row(Structure):
    """One model's row: the structure, and what was measured."""

    latency: dict[str, float] = field(default_factory=dict)  # ratio of units removed → small over dense
    latency_ms: float = 0.0  # of the dense model
    check_size: int = 0
    difference: float = 0.0
    find_seconds: float = 0.0
    check_seconds: float = 0.0  # of one check
    step_seconds: float = 0.0  # of training the dense model, one batch


def pair(values: Mapping[str, float]) -> str:
    """Both ratios' values in one cell."""
    return " / ".join(f"{values[str(ratio)]:.3f}" for ratio in RATIOS)


def structure_cells(row: Structure) -> list[str]:
    """The cells that every machine writes alike: model, groups, units, left out, parameters, MACs."""
    if row.refusal:
        return [f"`{row.model}`", "refused", "", "", "", ""]
    groups = ", ".join(f"{count} {kind}" for kind, count in row.groups.items())
    return [f"`{row.model}`", groups, f"{row.units:,}", str(len(row.left_out)), pair(row.parameters), pair(row.macs)]


def measured_cells(row: Row) -> list[str]:
    """The cells that depend on the machine: latency, and the self-check's size, result and cost."""
    if row.refusal:
        return [""] * 6
    difference = f"{row.difference:.0e}" if row.difference else "0"
    times = [f"{row.find_seconds:.2f}", f"{row.check_seconds:.2f}", f"{row.check_seconds / row.step_seconds:.1f}"]
    return [pair(row.latency), str(row.check_size), difference, *times]


STRUCTURE = ["model", "groups", "units", "left out", "parameters", "MACs"]
MEASURED = ["latency", "check at px", "difference", "find, s", "check, s", "check, steps"]


def shortened(note: str) -> str:
    """A note without the names of all layers but the first."""
    names, colon, reason = note.partition(": left out")
    if not colon:
        return note
    first, *more = names.split(", ")
    return first + (f" and {len(more)} more" if more else "") + colon + reason.partition("; they are ")[0]


def together(notes: Sequence[str]) -> list[str]:
    """Notes of one reason as one: the first in full, the others counted."""
    found: dict[str, list[str]] = {}
    for note in map(shortened, notes):
        # Layers of other blocks with the same fate differ by their own names and those they quote.
        found.setdefault(re.sub(r"`[^`]*`", "", note.partition(": ")[2]), []).append(note)
    return [first + (f" (and {len(rest)} like it)" if rest else "") for first, *rest in found.values()]


def reasons(row: Structure) -> list[str]:
    """What is left out and why, or why the whole model is refused."""
    if not row.refusal:
        return together(row.left_out)
    return ["refused: " + "; ".join(together(row.refusal.removesuffix(".").split("; ")))]


def markdown(rows: Sequence[Row]) -> str:
    """The table, how it was made, and what was left out of which model."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torch-pruning"))
    header = [*STRUCTURE, *MEASURED]
    lines = [
        f"Random masks that remove {RATIOS[0]:.0%} / {RATIOS[1]:.0%} of each group's units. Parameters, MACs and "
        f"latency are what remains of the dense model's, for images of {FULL_SIZE} pixels.\n"
        f"Latency: `torch.utils.benchmark`, batch 1, one CPU thread, median of {TURNS} turns. Left out: how many notes "
        "below.\n"
        "Difference: the larger of both ratios' self-checks, each in eval and train mode.\n"
        "Find, check: seconds to find the groups and to check them once, and how many training steps (SGD, batch "
        f"{TRAINING_BATCH}, images of the same size) one check takes.",
        "",
        f"{packages}, Python {platform.python_version()}.",
        "",
        f"| {' | '.join(header)} |",
        f"| --- | --- |{' ---: |' * (len(header) - 2)}",
        *(f"| {' | '.join([*structure_cells(row), *measured_cells(row)])} |" for row in rows),
        "",
        "What is left out, and why:",
        "",
    ]
    for row in rows:
        if notes := reasons(row):
            lines += [f"- `{row.model}`", *(f"  - {note}" for note in notes)]
    return "\n".join(lines)


def with_table(document: str, table: str, begin_line: str, end_line: str) -> str:
    """The document with the table between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in this order.
    """
    before, begin, rest = document.partition(begin_line)
    _, end, after = rest.partition(end_line)
    if not begin or not end:
        raise ValueError(
            f"Expected {DOCUMENT.name} to hold the lines {begin_line!r} and {end_line!r}, but one is missing."
        )
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"
