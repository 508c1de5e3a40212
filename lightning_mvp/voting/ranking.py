"""Which entries of a zoo are nearest to a target task, and those entries, read once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor, nn

from lightning_mvp.backbones.units import Groups
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.voting.labels import as_labels
from lightning_mvp.voting.similarities import SIMILARITIES, Similarity
from lightning_mvp.voting.sources import TargetData, require_takes
from lightning_mvp.voting.trust import Evidence
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.families import config_of, families, told_apart
from lightning_mvp.zoo.rebuild import require_fits
from lightning_mvp.zoo.zoo import ModelZoo

# Number of entries of a larger zoo that are scored by running their models. With 8 neighbours nearly all of LEEP's best
# are among them (benchmarks/README.md).
SHORTLIST = 24
ALL = "all"  # as `config`: entries of every config
Configs: TypeAlias = "str | Sequence[str] | None"


@dataclass(frozen=True)
class Neighbour:
    """One chosen entry.

    Args:
        name: name of the zoo entry.
        score: its similarity, greater is nearer; 0 if it was drawn at random.
        shared_classes: number of class names that it shares with the target; None where the target's are not known.
    """

    name: str
    score: float
    shared_classes: int | None = None


class Ranking(list[Neighbour]):
    """Neighbours, best first, with what was found on the way.

    ``zoo`` is the folder of their zoo. ``read`` holds, by name, the entries of those neighbours that were read and
    checked: a vote reads the others. ``evidence`` is what LEEP says about the task, None where it was not computed.
    ``scored`` counts the entries that were read and scored, and ``entries`` those that might have been chosen.
    """

    zoo: Path | None = None
    read: Mapping[str, ZooEntry] = MappingProxyType({})
    evidence: Evidence | None = None
    scored: int = 0
    entries: int = 0


def rank_neighbours(
    zoo: ModelZoo,
    images: Tensor,
    labels: Tensor,
    *,
    backbone: nn.Module,
    groups: Groups,
    similarity: Similarity | str | Mapping[str, Any] = "leep",
    k: int | None = 8,
    config: Configs = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 128,
    exclude: Collection[str] = (),
    shortlist: int | None = SHORTLIST,
) -> Ranking:
    """The `k` entries most similar to the task of these training images, best first, ties by name.

    Entries are read one after the other, and the best `k` so far stay in memory: a vote does not read them again.

    Args:
        zoo: at least one sound entry is needed.
        images: uint8 ``(n, C, H, W)``: every source sees them through its *own* preprocessing; or float, preprocessed
            already, for all sources alike.
        labels: class indices ``(n,)``, or multi-hot ``(n, L)`` of 0 and 1, as
            :func:`~lightning_mvp.voting.labels.as_labels` takes them.
        backbone: the dense backbone, for its structure; it is not changed.
        groups: the groups of that backbone.
        similarity: "leep", "prototypes", "cover", "latest", or the controls "random" (drawn by `seed`) and "farthest",
            see :mod:`~lightning_mvp.voting.similarities`; or a
            :class:`~lightning_mvp.voting.similarities.Similarity` of your own, as an object or as a mapping with
            ``_target_``.
        k: how many; None takes all. With fewer entries than k, all are taken, with a warning.
        config: hash of the pruning config whose entries count, with those that were grown from them; several hashes, or
            ``"all"``, for entries of several trainings. None takes the one with most entries, and says which are left
            out. The hash of a grown entry's config takes that alone.
        classes: the target's class names, to report how many are shared.
        seed: of every random choice.
        batch_size: number of images in one forward pass.
        exclude: names of entries that must not be chosen.
        shortlist: of a larger zoo so many entries (or `k`, if that is more) are read: LEEP runs a model of each, so
            those are taken that :func:`~lightning_mvp.voting.recall.recalled` puts first, and besides them all entries
            without prototypes, which it can't find: a warning says how many. None reads all. A similarity of your own
            reads all, unless it has a method `shortlist`.

    Raises:
        ValueError: an empty zoo, an unknown similarity or config, labels that say nothing, float images that the
            backbone can't take, or nothing left to choose from.
    """
    measure = SIMILARITIES.resolve(similarity)
    if measure.needs_labels:
        labels = as_labels(labels)
        measure.require_labels(labels)
    names = candidate_names(zoo, config, exclude)
    if images.is_floating_point():
        require_takes(backbone, images, "images")
    target = TargetData(zoo, images, labels, backbone, groups, names, classes, seed, batch_size)
    return nearest(target, measure, k, shortlist)


def nearest(target: TargetData, measure: Similarity, k: int | None, shortlist: int | None) -> Ranking:
    """:func:`rank_neighbours` for a task whose images and labels were checked."""
    if k is not None and k < 1:
        raise ValueError(f"Expected argument `k` to be at least 1, but got {k}. None takes all entries.")
    if shortlist is not None and shortlist < 1:
        raise ValueError(
            f"Expected argument `shortlist` to be at least 1, but got {shortlist}. None scores all entries."
        )
    names, most = target.names, len(target.names) if shortlist is None or k is None else max(shortlist, k)
    candidates = names if len(names) <= most else measure.shortlist(target, most)
    found, best, class_counts = _scored(measure, target, candidates, k)
    if measure.needs_equal_classes and len(class_counts) > 1:
        warnings.warn(
            f"LEEP compares sources of equal class count only, but the zoo's have {sorted(class_counts)} classes. "
            "Use `similarity='prototypes'`, or one config of equal tasks.",
            stacklevel=3,
        )
    if k is not None and len(found) < k:
        warnings.warn(f"Expected at least {k} entries to choose from, but got {len(found)}: using all.", stacklevel=3)
    scores = {name: neighbour.score for name, neighbour in found.items()}
    ranking = Ranking(found[name] for name in measure.order(scores, target, k)[:k])
    ranking.zoo, ranking.scored, ranking.entries = target.zoo.path, len(found), len(names)
    ranking.evidence = measure.evidence(scores, target, len(candidates) == len(names))
    ranking.read = {neighbour.name: best[neighbour.name] for neighbour in ranking if neighbour.name in best}
    return ranking


def _scored(
    measure: Similarity, target: TargetData, candidates: Collection[str], k: int | None
) -> tuple[dict[str, Neighbour], dict[str, ZooEntry], set[int]]:
    """All candidates that can be compared, by name; the entries of the best `k`; how many classes each of them has."""
    found: dict[str, Neighbour] = {}
    best: dict[str, ZooEntry] = {}
    class_counts: set[int] = set()
    lacking: list[str] = []
    sound = 0
    for name in sorted(candidates):
        entry = None  # the one before is let go: no more than k + 1 are in memory
        with suppress(KeyError):  # it was removed since the names were listed
            entry = read_usable(target, name, "Skipping a damaged zoo entry")
        sound += entry is not None
        if entry is not None and measure.needs is not None and not _has(entry, measure.needs):
            lacking.append(name)
        elif entry is not None and (score := _score(measure, entry, target)) is not None:
            classes = entry.facts["classes"]
            shared = None if target.classes is None else len({*classes} & {*target.classes})
            found[name], best[name] = Neighbour(name, score, shared), entry
            class_counts.add(len(classes))
            if k is not None and len(best) > k:
                kept = measure.order({other: found[other].score for other in best}, target, k)[:k]
                best = {other: best[other] for other in kept}
    if lacking:
        what = "a head" if measure.needs == "head" else measure.needs
        warnings.warn(f"Skipping zoo entries without {what}: {', '.join(lacking)}.", stacklevel=4)
    if not found:
        raise ValueError(
            f"No entry of the zoo at {target.zoo.path} can be a neighbour by {type(measure).__name__}: of "
            f"{len(target.zoo)} entries {len(candidates)} of one config, and not excluded, were looked at, {sound} of "
            "them are sound, and none could be compared with these images; the warnings say why. Fill the zoo with "
            "`mvp-prune`, or see that the images are of the backbone's size, and finite."
        )
    return found, best, class_counts


def read_usable(target: TargetData, name: str, consequence: str, known: ZooEntry | None = None) -> ZooEntry | None:
    """An entry that a vote can use: read now, or `known`. None if it is damaged, with a warning of the consequence.

    Raises:
        KeyError: no entry of that name.
    """
    try:
        entry = target.zoo[name] if known is None else known
        require_usable(entry, target)
    except DamagedEntryError as error:
        warnings.warn(f"{consequence}: {error}", stacklevel=5)
        return None
    return entry


def require_usable(entry: ZooEntry, target: TargetData) -> None:
    """Refuse an entry that a vote could not use: weights against its masks, and raw images against its facts.

    Raises:
        DamagedEntryError: naming the entry.
    """
    require_fits(entry, target.backbone, target.groups)
    if target.seen.preprocessed:
        return
    try:
        facts = TaskFacts.from_dict(entry.facts)
    except (ValueError, TypeError) as error:
        raise DamagedEntryError(f"The facts of entry {entry.name!r} say nothing usable: {error}") from error
    channels = (target.zoo.recipe or {}).get("in_chans", facts.channels)
    if facts.channels != channels:
        raise DamagedEntryError(
            f"Expected entry {entry.name!r} to be of images with {channels} channels, but its facts have "
            f"{facts.channels}. Remove it from its zoo and prune this task again."
        )


def _has(entry: ZooEntry, part: str) -> bool:
    value = getattr(entry, part)
    return value is not None and len(value) > 0


def _score(measure: Similarity, entry: ZooEntry, target: TargetData) -> float | None:
    """The similarity of an entry; None, with a warning, if it can't be compared."""
    try:
        score = float(measure.score(entry, target))
        if not math.isfinite(score):
            raise DamagedEntryError(
                f"The similarity of entry {entry.name!r} is {score}. Are its weights or the images broken?"
            )
    except DamagedEntryError as error:
        warnings.warn(f"Skipping a damaged zoo entry: {error}", stacklevel=3)
        return None
    return score


def candidate_names(zoo: ModelZoo, config: Configs, exclude: Collection[str]) -> list[str]:
    """The names of the entries that are compared: of the chosen pruning configs, and those that were grown from them.

    Without a choice a warning says which entries are left out, and in what they differ.
    """
    if not len(zoo):
        raise ValueError(f"The zoo at {zoo.path} is empty. Fill it with `mvp-prune`.")
    found, configs = families(zoo), zoo.configs
    if config == ALL:
        chosen = list(found)
    elif config is not None:
        chosen = [config] if isinstance(config, str) else list(config)
        unknown = [key for key in chosen if key not in found and key not in configs]
        if unknown or not chosen:
            got = repr(config) if isinstance(config, str) or not unknown else ", ".join(map(repr, unknown))
            raise ValueError(f"Expected `config` to be some of {list(configs)}, or {ALL!r}, but got {got}.")
    else:
        chosen = [max(found, key=lambda key: len(found[key]))]  # the first in order among equals
        own = config_of(zoo, chosen[0]) if len(found) > 1 else {}
        left_out = [
            f"{len(names)} of {key} ({told_apart(config_of(zoo, key), own)})"
            for key, names in found.items()
            if key not in chosen
        ]
        if left_out:
            warnings.warn(
                f"The zoo holds entries of several pruning configs: the {len(found[chosen[0]])} of {chosen[0]} may "
                f"vote, and left out are {', '.join(left_out)}. Choose one by `config`, several by a list of them, or "
                f"take all by config={ALL!r}.",
                stacklevel=3,
            )
    names = {name for key in chosen for name in found.get(key) or configs[key]}
    return sorted(names - set(exclude))
