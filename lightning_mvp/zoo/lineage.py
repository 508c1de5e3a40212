"""Who came from whom in a zoo that grows by use: waves, generations and parents, from headers alone. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.families import is_grown
from lightning_mvp.zoo.summary import validation_accuracy
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class Member:
    """One entry and where it comes from.

    Args:
        name: The entry's name.
        task: The task's name.
        wave: The wave in which it grew, 0 for a seed; entries of lower waves voted for it.
        generation: One more than the greatest generation of its parents, 0 for a seed.
        parents: The names of the entries that voted, nearest or latest first; empty for a seed.
        accuracy: The accuracy on validation data in [0, 1]; None if it is not known.
        sha256: The SHA-256 of the entry's content, as its file says it.
    """

    name: str
    task: str
    wave: int
    generation: int
    parents: tuple[str, ...]
    accuracy: float | None
    sha256: str


def lineage(zoo: ModelZoo, names: Iterable[str] | None = None) -> list[Member]:
    """The members of a zoo by (wave, name): an order that no file's time changes.

    Args:
        zoo: The zoo that holds the entries; no tensor is read.
        names: The names of the entries; None takes all.

    Returns:
        One member for each entry whose header is readable; damaged ones are named in a warning each and left out.
    """
    found = zoo.each(lambda name: _member(zoo.header(name)), zoo.names if names is None else names)
    return sorted(found, key=lambda member: (member.wave, member.name))


def descendants(members: Sequence[Member], names: Collection[str]) -> tuple[str, ...]:
    """Entries that have one of ``names`` among their parents, or their parents' parents and so on, by (wave, name).

    Args:
        members: The members of the zoo.
        names: The names of the ancestors; they need not be in the zoo any more, and are not among the answer.

    Example:
        >>> tree = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
        >>> descendants([Member(name, name, 0, 0, parents, None, "") for name, parents in tree.items()], ["a"])
        ('b', 'c')
    """
    reached, new = set(names), set(names)
    while new:
        new = {member.name for member in members if member.name not in reached and new & set(member.parents)}
        reached |= new
    return tuple(member.name for member in members if member.name in reached - set(names))


def seeds_fingerprint(members: Sequence[Member]) -> str:
    """Sixteen hexadecimal digits of the seeds' names and content: part of the id of whatever grows from them.

    Args:
        members: The members of one family; those of wave 0 count.
    """
    seeds = sorted((member.name, member.sha256) for member in members if member.wave == 0)
    return hashlib.sha256(json.dumps(seeds).encode()).hexdigest()[:16]


def _member(header: Mapping[str, Any]) -> Member:
    info, name = header["info"], header["name"]
    grown = is_grown(header["config"])
    wave, generation, parents = (info.get("wave"), info.get("generation"), info.get("parents")) if grown else (0, 0, [])
    whole = all(type(value) is int and value >= int(grown) for value in (wave, generation))
    if not whole or not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise DamagedEntryError(
            f"Expected the grown entry {name!r} to name its wave, generation and parents, but got {str(wave)[:40]!r}, "
            f"{str(generation)[:40]!r} and {str(parents)[:80]!r}. Remove it and grow this task again."
        )
    accuracy, task = validation_accuracy(info), str(header["facts"]["name"])
    return Member(name, task, wave, generation, tuple(parents), accuracy, header["sha256"])
