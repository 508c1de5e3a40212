"""How alike the masks of a growing zoo become, generation by generation. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_mvp.zoo.kinship import mask_overlap, readable_entries
from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class Generation:
    """The masks of one generation.

    Args:
        number: The generation's number; the seeds are generation 0.
        entries: The number of its entries.
        iou: The mean IoU over all pairs of its entries; None for a single entry.
        random_iou: The mean IoU that random masks of the same widths would have.
        parents_iou: The mean IoU of its entries with those of their parents that are still there; None for seeds.
        accuracy: The mean accuracy on validation data in [0, 1], over the entries that know theirs; None if none does.
    """

    number: int
    entries: int
    iou: float | None
    random_iou: float | None
    parents_iou: float | None
    accuracy: float | None


def generations(zoo: ModelZoo, members: Sequence[Member]) -> list[Generation]:
    """IoU of masks within each generation, and with the generation's parents.

    Args:
        zoo: The zoo that holds the entries.
        members: The members of one family, as :func:`~lightning_mvp.zoo.lineage.lineage` gives them; damaged
            ones are left out.

    Returns:
        The generations in order.
    """
    entries, _ = readable_entries(zoo, [member.name for member in members])
    masks = {entry.name: entry.masks for entry in entries}
    numbers = sorted({member.generation for member in members if member.name in masks})
    return [
        _generation(number, [m for m in members if m.generation == number and m.name in masks], masks)
        for number in numbers
    ]


def _generation(number: int, members: Sequence[Member], masks: dict[str, dict[str, np.ndarray]]) -> Generation:
    own = [masks[member.name] for member in members]
    iou, random = mask_overlap(own, own)
    pairs = np.triu_indices(len(own), 1)
    with_parents = [
        mask_overlap([masks[member.name]], parents)[0].mean()
        for member in members
        if (parents := [masks[name] for name in member.parents if name in masks])
    ]
    return Generation(
        number,
        len(own),
        _mean(iou[pairs]),
        _mean(random[pairs]),
        _mean(with_parents),
        _mean([member.accuracy for member in members if member.accuracy is not None]),
    )


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
