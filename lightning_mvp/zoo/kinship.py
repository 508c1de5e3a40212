"""What the tasks of a zoo have in common: the units they kept, their classes, their prototypes. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_mvp.zoo.chance import expected_random_iou
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.prototypes import prototype_similarity
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class Relative:
    """What another task of the zoo has in common with a given one.

    Args:
        name: The name of the other task's entry.
        iou: The IoU of the two masks, see :func:`mask_overlap`.
        random_iou: The IoU that random masks of the same widths would have.
        shared_classes: The number of class names that both have.
        similarity: The :func:`prototype_similarity` as a source for the given task; None unless both have prototypes.
    """

    name: str
    iou: float
    random_iou: float
    shared_classes: int
    similarity: float | None


def mask_overlap(
    rows: Sequence[Mapping[str, np.ndarray]], columns: Sequence[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    r"""The IoU of every mask of `rows` with every mask of `columns`, a mean over groups weighted by their units:
    :math:`\sum_ℓ |U_ℓ|\, \mathrm{IoU}_ℓ / \sum_ℓ |U_ℓ|`. A group that both keep whole says nothing and is left out.

    Args:
        rows: Masks of m entries, for each group a bool array ``(units,)``.
        columns: Masks of n entries, of the same groups.

    Returns:
        The IoU ``(m, n)``, and the same mean of what random masks of these widths would have ``(m, n)``.

    Example:
        >>> one, other = {"conv": np.array([True, False, False])}, {"conv": np.array([False, True, False])}
        >>> iou, random = mask_overlap([one], [one, other])
        >>> iou.tolist(), random.round(3).tolist()
        ([[1.0, 0.0]], [[0.333, 0.333]])
    """
    shape = (len(rows), len(columns))
    iou, random, weight = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for group, mask in rows[0].items():
        a, b = (np.stack([masks[group] for masks in side]).astype(np.float64) for side in (rows, columns))
        kept_a, kept_b, both = a.sum(1), b.sum(1), a @ b.T
        decided = len(mask) * ~((kept_a == len(mask))[:, None] & (kept_b == len(mask))[None])
        iou += decided * both / (kept_a[:, None] + kept_b[None] - both)
        random += decided * _random_iou(len(mask), kept_a.astype(int), kept_b.astype(int))
        weight += decided
    whole = weight == 0
    return (iou + whole) / (weight + whole), (random + whole) / (weight + whole)


def nearest_relatives(entry: ZooEntry, others: Iterable[ZooEntry], k: int | None = None) -> list[Relative]:
    """The entries that have most in common with `entry`: by prototypes where stored, then by masks, ties by name.

    Args:
        entry: The entry of the given task.
        others: Entries of the same zoo and config; `entry` itself is skipped.
        k: The number of entries to return; None for all.
    """
    others = [other for other in others if other.name != entry.name]
    if not others:
        return []
    iou, random = mask_overlap([entry.masks], [other.masks for other in others])
    found = [
        Relative(other.name, float(own), float(chance), shared_classes(entry, other), _similarity(other, entry))
        for other, own, chance in zip(others, iou[0], random[0], strict=True)
    ]
    lowest = -2.0  # Below any cosine: entries without prototypes come last.
    return sorted(
        found, key=lambda each: (-(lowest if each.similarity is None else each.similarity), -each.iou, each.name)
    )[:k]


def shared_classes(one: ZooEntry, other: ZooEntry) -> int:
    """How many class names both have."""
    return len(set(one.facts["classes"]) & set(other.facts["classes"]))


def similarities(entries: Sequence[ZooEntry]) -> tuple[np.ndarray, str]:
    """How alike the tasks are, each with each, all by one measure.

    Returns:
        ``(n, n)``, symmetric, and what it is: "prototypes", the prototype similarity as a mean of both directions, if
        all entries have stored them; else "shared classes", their number.
    """
    stored = [entry.prototypes for entry in entries if entry.prototypes is not None]
    if len(stored) < len(entries):
        found = [[float(shared_classes(one, other)) for one in entries] for other in entries]
        return np.array(found), "shared classes"
    both = np.array([[prototype_similarity(source, target) for source in stored] for target in stored])
    return (both + both.T) / 2, "prototypes"


def readable_entries(zoo: ModelZoo, names: Iterable[str]) -> tuple[list[ZooEntry], dict[str, str]]:
    """Entries read and verified, without their weights, importance and head, so that hundreds fit into memory.

    Returns:
        The readable ones in the order of `names`, and what is wrong with each of the others, by name.
    """
    readable, damaged = [], {}
    for name in names:
        try:
            readable.append(replace(zoo[name], weights={}, importance={}, head={}))
        except KeyError:
            pass  # It was removed since the names were listed.
        except DamagedEntryError as error:
            damaged[name] = str(error)
    return readable, damaged


def _similarity(source: ZooEntry, target: ZooEntry) -> float | None:
    if source.prototypes is None or target.prototypes is None:
        return None
    return prototype_similarity(source.prototypes, target.prototypes)


def _random_iou(units: int, kept_a: np.ndarray, kept_b: np.ndarray) -> np.ndarray:
    """The expectation for each pair, ``(m, n)``, computed once for each pair of widths that occurs."""
    widths_a, of_a = np.unique(kept_a, return_inverse=True)
    widths_b, of_b = np.unique(kept_b, return_inverse=True)
    table = np.stack([expected_random_iou(units, width, widths_b) for width in widths_a])
    return table[of_a][:, of_b]
