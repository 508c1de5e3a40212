"""A zoo on the screen: its entries, one of them with its relatives, and who came from whom. Needs no torch.

The tables are for a console that takes names as they are, without rich's markup: `Console(markup=False, emoji=False)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Column, Table

from lightning_mvp.words import counted
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.entry_file import shown
from lightning_mvp.zoo.generations import Generation
from lightning_mvp.zoo.kinship import Relative
from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.summary import LOOKED_FOR, EntrySummary, differing_settings, kept_fractions, validation_accuracy

UNKNOWN = "–"
_TEXT = partial(Column, overflow="fold")
_NUMBER = partial(Column, justify="right", no_wrap=True)
_PLAIN: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False}


def percent(value: float | None) -> str:
    """For people.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3%', '–')
    """
    return UNKNOWN if value is None else f"{value:.1%}"


def entries_tables(summaries: Sequence[EntrySummary]) -> list[Table]:
    """A row for each entry, a table for each family, headed by what tells the configs of the families' seeds apart.

    Args:
        summaries: The entries, as :func:`~lightning_mvp.zoo.summary.summarise` gives them.
    """
    seeds = (each for each in summaries if each.problem is None and each.config == each.family)
    differing = differing_settings({each.config: each.settings for each in seeds})
    tables = []
    for family in dict.fromkeys(each.family for each in summaries):
        title = ", ".join([f"config {shown(family)}", *_pairs(differing.get(family, {}))])
        numbers = map(_NUMBER, ("classes", "accuracy", "units", "params", "MACs", "size"))
        table = Table(_TEXT("entry"), *numbers, title=title, **_PLAIN)
        rows = [each for each in summaries if each.family == family]
        for each in rows:
            table.add_row(*_entry_row(each), style="red" if each.problem else None)
        if all(each.accuracy is None for each in rows):
            table.caption, table.caption_justify = f"No accuracy was found. Looked for: {LOOKED_FOR}.", "left"
        tables.append(table)
    return tables


def _entry_row(each: EntrySummary) -> list[str]:
    name = shown(each.name)
    if each.problem is not None:
        return [name, "", "damaged", "", "", "", decimal(each.size)]
    return [
        name,
        UNKNOWN if each.classes is None else str(each.classes),
        percent(each.accuracy),
        *(percent(each.kept.get(what)) for what in ("units", "params", "macs")),
        decimal(each.size),
    ]


def entry_page(entry: ZooEntry, size: int, relatives: Sequence[Relative]) -> RenderableType:
    """All about one entry: the task, how it was pruned, its widths, and the tasks nearest to it.

    Args:
        entry: The entry, weights included.
        size: The bytes of its file.
        relatives: The most similar entries, best first.
    """
    parts: list[RenderableType] = [_facts(entry, size), _widths(entry)]
    if relatives:
        parts.append(_relatives(relatives))
    return Group(*parts)


def _facts(entry: ZooEntry, size: int) -> Table:
    facts, info = entry.facts, entry.info
    # What the callback logged about its own progress says the same as `kept`.
    metrics = {name: value for name, value in (info.get("metrics") or {}).items() if not name.startswith("mvp/")}
    rows: dict[str, Any] = {
        "task": facts["name"],
        counted(len(facts["classes"]), "class", "classes"): _first(list(map(str, facts["classes"]))),
        **{name.replace("_", " "): _short(value) for name, value in facts.items() if name not in ("name", "classes")},
        "pruning config": ", ".join(_pairs(entry.config)),
        "validation accuracy": _accuracy(info),
        "metrics": ", ".join(_pairs(metrics)),
        "kept": ", ".join(_pairs({name: percent(value) for name, value in kept_fractions(info).items()})),
        "parameters": f"{sum(np.size(value) for value in entry.weights.values()):,} numbers in the backbone"
        + (f", {sum(np.size(value) for value in entry.head.values()):,} in the head" if entry.head else ", no head"),
        "importance": "stored" if entry.importance else "not stored",
        "prototypes": "not stored"
        if entry.prototypes is None
        else f"{counted(len(entry.prototypes), 'class mean')} stored",
        **{name: _short(info[name]) for name in info if name not in ("kept", "metrics", "versions", "zoo")},
        "versions": ", ".join(_pairs(info.get("versions") or {})),
        "size on disk": decimal(size),
    }
    table = Table(Column(style="bold", no_wrap=True), _TEXT(), title=entry.name, show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value) or UNKNOWN)
    return table


def _accuracy(info: Mapping[str, Any]) -> str:
    found = validation_accuracy(info)
    return f"none; looked for {LOOKED_FOR}" if found is None else percent(found)


def _widths(entry: ZooEntry) -> Table:
    table = Table(_TEXT("group"), *map(_NUMBER, ("kept", "of units", "")), title="Widths", title_justify="left")
    for group, mask in entry.masks.items():
        kept = int(mask.sum())
        table.add_row(group, f"{kept:,}", f"{len(mask):,}", percent(kept / len(mask)))
    table.add_section()
    kept, units = (sum(map(count, entry.masks.values())) for count in (np.count_nonzero, len))
    table.add_row("all groups", f"{kept:,}", f"{units:,}", percent(kept / units))
    return table


def _relatives(relatives: Sequence[Relative]) -> Table:
    by_prototypes = any(each.similarity is not None for each in relatives)
    table = Table(
        _TEXT("entry"),
        *map(_NUMBER, ("similarity", "IoU", "random", "shared classes")),
        title="Nearest tasks of the same config",
        title_justify="left",
        caption=f"Best first by {'prototype similarity' if by_prototypes else 'IoU'}. IoU: of the units kept, mean "
        "over groups weighted by their units; beside it what random masks of the same widths would have.",
        caption_justify="left",
    )
    for each in relatives:
        similarity = UNKNOWN if each.similarity is None else f"{each.similarity:.2f}"
        numbers = (similarity, f"{each.iou:.2f}", f"{each.random_iou:.2f}", str(each.shared_classes))
        table.add_row(each.name, *numbers)
    return table


def lineage_table(members: Sequence[Member], title: str, there: Collection[str]) -> Table:
    """A row for each entry, by wave and name.

    Args:
        members: The entries of one family.
        title: The table's title; may be empty.
        there: The names of the entries that the zoo has: parents that are gone get a †.
    """
    columns = (_NUMBER("wave"), _NUMBER("generation"), _TEXT("entry"), _NUMBER("accuracy"), _TEXT("parents"))
    table = Table(*columns, title=title or None, **_PLAIN)
    for member in members:
        parents = ", ".join(shown(name) + ("" if name in there else " †") for name in member.parents)
        numbers = (str(member.wave), str(member.generation))
        table.add_row(*numbers, shown(member.name), percent(member.accuracy), parents or "the backbone")
    return table


def generations_table(generations: Sequence[Generation]) -> Table:
    """A row for each generation."""
    headings = ("generation", "entries", "IoU of pairs", "random", "IoU with parents", "mean accuracy")
    table = Table(*map(_NUMBER, headings), title="Masks by generation", **_PLAIN)
    for each in generations:
        numbers = (UNKNOWN if v is None else f"{v:.2f}" for v in (each.iou, each.random_iou, each.parents_iou))
        table.add_row(str(each.number), str(each.entries), *numbers, percent(each.accuracy))
    return table


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_short(value)}" for name, value in values.items()]


def _first(words: list[str], most: int = 40) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    """Numbers with four digits: what is exact is in the JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_short, value)) + ")"
    return str(value)
