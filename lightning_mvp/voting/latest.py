"""The latest entries of a zoo that grows by use, as voters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lightning_mvp.voting.ranking import Neighbour, Ranking
from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.waves import family_members
from lightning_mvp.zoo.zoo import ModelZoo


def latest(
    zoo: ModelZoo,
    k: int | None = 8,
    *,
    before_wave: int | None = None,
    config: str | None = None,
    classes: Sequence[str] | None = None,
) -> Ranking:
    """The `k` entries that were grown last, for ``voted_backbone(zoo, loader, neighbours=latest(zoo, 8))``.

    Last means: of the highest wave, and in it last by name; never the time of a file. Seeds are wave 0.

    Args:
        zoo: at least one seed is needed.
        k: how many; None takes all. With fewer entries than that, all are taken, with a warning.
        before_wave: only entries of lower waves; None takes all.
        config: hash of the seeds' pruning config; None takes the family with most entries.
        classes: the target's class names, to report how many are shared.

    Returns:
        Neighbours, the latest first, all of score 0: they count alike.

    Raises:
        ValueError: no seeds, no entry before that wave, or `k` below 1.

    Example:
        >>> latest(ModelZoo("zoo/"), 8, before_wave=3)  # doctest: +SKIP
    """
    _, members = family_members(zoo, config)
    return latest_of([m for m in members if before_wave is None or m.wave < before_wave], k, zoo, classes)


def latest_of(members: Sequence[Member], k: int | None, zoo: ModelZoo, classes: Sequence[str] | None = None) -> Ranking:
    """The last `k` of members that are in the order of (wave, name), as :func:`latest` ranks them."""
    if k is not None and k < 1:
        raise ValueError(f"Expected argument `k` to be at least 1, but got {k}. None takes all entries.")
    if not members:
        raise ValueError(f"Expected entries in the zoo at {zoo.path} that may vote, but no wave before is there.")
    if k is not None and len(members) < k:
        warnings.warn(f"Expected at least {k} entries to choose from, but got {len(members)}: using all.", stacklevel=2)
    chosen = list(reversed(members))[:k]
    shared = (
        None if classes is None else len(set(zoo.header(m.name)["facts"]["classes"]) & set(classes)) for m in chosen
    )
    return Ranking(Neighbour(member.name, 0.0, same) for member, same in zip(chosen, shared, strict=True))
