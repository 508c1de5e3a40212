"""Which entries of a zoo are nearest to a target task: LEEP, prototypes, and the controls."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import features_of
from lightning_mvp.backbones.units import Groups
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.voting.labels import as_labels, require_content
from lightning_mvp.voting.leep import covering_order, expected_predictions, label_entropy, leep
from lightning_mvp.voting.recall import class_means, recalled
from lightning_mvp.voting.sources import Inputs, probabilities_of, require_takes, seen_by
from lightning_mvp.voting.trust import Evidence
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.families import families
from lightning_mvp.zoo.prototypes import prototype_similarity
from lightning_mvp.zoo.rebuild import dense_backbone, refill, require_fits
from lightning_mvp.zoo.zoo import ModelZoo

Similarity = Literal["leep", "prototypes", "cover", "random", "farthest"]

# Entries of a larger zoo that are scored by running their models: with 8 neighbours nearly all of LEEP's best are among
# them (benchmarks/README.md).
SHORTLIST = 24


@dataclass(frozen=True)
class Neighbour:
    """One chosen entry.

    Args:
        name: of the zoo entry.
        score: its similarity, greater is nearer; 0 if it was drawn at random.
        shared_classes: class names it has in common with the target, if the target's are known.
    """

    name: str
    score: float
    shared_classes: int | None = None


class Ranking(list[Neighbour]):
    """Neighbours, best first.

    ``evidence`` is what LEEP says, None where it was not asked for; ``scored`` of the zoo's ``entries`` were looked at.
    """

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
    similarity: Similarity = "leep",
    k: int | None = 8,
    config: str | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 128,
    exclude: Collection[str] = (),
    shortlist: int | None = SHORTLIST,
) -> Ranking:
    """The `k` entries most similar to the task of these training images, best first, ties by name.

    Args:
        zoo: at least one sound entry is needed.
        images: uint8 ``(n, C, H, W)``: every source sees them through its *own* preprocessing; or float, preprocessed
            already, for all sources alike.
        labels: class indices ``(n,)``, or multi-hot ``(n, L)`` of 0 and 1, as
            :func:`~lightning_mvp.voting.labels.as_labels` takes them.
        backbone: the dense backbone, for its structure; it is not changed.
        groups: of that backbone.
        similarity: "leep"; "prototypes" (`prototype_similarity` of θ⁰'s features); "cover" (LEEP's likelihoods, chosen
            to complement each other: `covering_order`; scores are LEEP; on CIFAR-100 no better than "leep", −0.1 points
            [−1.3, +0.9] with 8 neighbours, benchmarks/cifar100/cnn/report.md); the controls "random" (drawn by `seed`)
            and "farthest" (the least LEEP first).
        k: how many; None takes all. With fewer entries than k, all are taken, with a warning.
        config: hash of the pruning config whose entries count, with those that were grown from them; None takes the
            one with most entries, and says so if there are others. The hash of a grown entry's config takes that alone.
        classes: the target's class names, to report how many are shared.
        seed: of "random".
        batch_size: images a pass.
        exclude: names of entries that must not be chosen.
        shortlist: of a larger zoo so many entries (or `k`, if that is more) are read, those that
            :func:`~lightning_mvp.voting.recall.recalled` puts first, as LEEP runs a model of each; None reads all.
            Entries without prototypes are not found then, and said.

    Raises:
        ValueError: an empty zoo, an unknown similarity or config, labels that say nothing, float images that the
            backbone can't take, or nothing left to choose from.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"Expected argument `similarity` to be one of {get_args(Similarity)}, but got {similarity!r}.")
    if k is not None and k < 1:
        raise ValueError(f"Expected argument `k` to be at least 1, but got {k}. None takes all entries.")
    if similarity != "random":
        labels = as_labels(labels)
        require_content(labels, similarity)
    if similarity == "cover" and labels.ndim != 1:
        raise ValueError("Expected one class per image for similarity='cover', but got multi-hot labels. Use 'leep'.")
    if shortlist is not None and shortlist < 1:
        raise ValueError(
            f"Expected argument `shortlist` to be at least 1, but got {shortlist}. None scores all entries."
        )
    excluded = set(exclude)
    names = [name for name in _one_family(zoo, config) if name not in excluded]
    if images.is_floating_point() and similarity != "random":
        require_takes(backbone, images, "images")
    inputs = Inputs(images)
    candidates, most = names, len(names) if shortlist is None or k is None else max(shortlist, k)
    if len(names) > most:
        if similarity == "random":
            candidates = _shuffled(names, seed)[:most]
        else:
            dense, by_leep = dense_backbone(zoo, backbone), similarity != "prototypes"
            promising = recalled(zoo, names, inputs, labels, dense, by_leep=by_leep, batch_size=batch_size)
            candidates = promising[-most:] if similarity == "farthest" else promising[:most]
    found = zoo.entries(names=candidates)
    entries = sound(found, lambda entry: require_usable(entry, zoo, images, backbone, groups))
    score: Callable[[ZooEntry], float]
    expected: dict[str, Tensor] = {}
    if similarity == "random":
        usable = entries
        score = lambda entry: 0.0  # noqa: E731 (one of three one-line scores)
    elif similarity == "prototypes":
        usable = _having(entries, "prototypes", lambda entry: entry.prototypes is not None)
        target = _TargetPrototypes(dense_backbone(zoo, backbone), inputs, labels, batch_size)
        score = lambda entry: prototype_similarity(_prototypes(entry, target(entry)), target(entry))  # noqa: E731
    else:
        usable = _having(entries, "a head", lambda entry: bool(entry.head))
        counts = sorted({len(entry.facts["classes"]) for entry in usable})
        if len(counts) > 1:
            warnings.warn(
                f"LEEP compares sources of equal class count only, but the zoo's have {counts} classes. "
                "Use `similarity='prototypes'`, or one config of equal tasks.",
                stacklevel=2,
            )

        scratch = copy.deepcopy(backbone).eval()

        def score(entry: ZooEntry) -> float:
            head = refill(scratch, entry, groups)
            assert head is not None  # only such entries are asked
            probabilities = probabilities_of(entry, scratch, head, inputs(entry.facts), batch_size)
            if similarity == "cover":
                expected[entry.name] = expected_predictions(probabilities, labels)
            return leep(probabilities, labels)

    if not usable:
        raise ValueError(
            f"No entry of the zoo at {zoo.path} can be a neighbour by similarity {similarity!r}: of {len(zoo)} entries "
            f"{len(candidates)} were looked at, and {len(entries)} are sound, of one config and not excluded. Fill the "
            "zoo with `mvp-prune`."
        )
    if k is not None and len(usable) < k:
        warnings.warn(f"Expected at least {k} entries to choose from, but got {len(usable)}: using all.", stacklevel=2)
    scores: dict[str, float] = {}
    usable = sound(usable, lambda entry: scores.update({entry.name: _finite(entry, score(entry))}))
    if not usable:
        raise ValueError(
            f"None of the entries of the zoo at {zoo.path} could be compared with these images; the "
            "warnings say why. Are the images of the backbone's size, and finite?"
        )
    if similarity == "random":
        order = [name for name in _shuffled(names, seed) if name in scores]
    elif similarity == "cover":
        covering = sorted(scores)
        rows = torch.stack([expected[name] for name in covering])
        order = [covering[row] for row in covering_order(rows, len(covering) if k is None else k)]
    else:
        sign = 1 if similarity == "farthest" else -1
        order = sorted(scores, key=lambda name: (sign * scores[name], name))
    theirs = {entry.name: set(entry.facts["classes"]) for entry in usable}
    ranked = Ranking(
        Neighbour(name, scores[name], None if classes is None else len(theirs[name] & set(classes)))
        for name in order[:k]
    )
    if similarity not in ("random", "prototypes"):
        ranked.evidence = Evidence.of(list(scores.values()), label_entropy(labels), whole=len(candidates) == len(names))
    ranked.scored, ranked.entries = len(scores), len(names)
    return ranked


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    return np.random.default_rng(seed).permutation(sorted(names)).tolist()


def sound(entries: Iterable[ZooEntry], check: Callable[[ZooEntry], object]) -> list[ZooEntry]:
    """Those that pass the check; the others are named in a warning each, as damaged ones are by a zoo."""
    passed = []
    for entry in entries:
        try:
            check(entry)
        except DamagedEntryError as error:
            warnings.warn(f"Skipping a damaged zoo entry: {error}", stacklevel=3)
        else:
            passed.append(entry)
    return passed


def require_usable(entry: ZooEntry, zoo: ModelZoo, images: Tensor, backbone: nn.Module, groups: Groups) -> None:
    """Refuse an entry that a vote could not use: weights against its masks, and raw images against its facts.

    Raises:
        DamagedEntryError: naming the entry.
    """
    require_fits(entry, backbone, groups)
    if images.is_floating_point():
        return
    try:
        facts = TaskFacts.from_dict(entry.facts)
    except (ValueError, TypeError) as error:
        raise DamagedEntryError(f"The facts of entry {entry.name!r} say nothing usable: {error}") from error
    channels = (zoo.recipe or {}).get("in_chans", facts.channels)
    if facts.channels != channels:
        raise DamagedEntryError(
            f"Expected entry {entry.name!r} to be of images with {channels} channels, but its facts have "
            f"{facts.channels}. Remove it from its zoo and prune this task again."
        )


class _TargetPrototypes:
    """The target's prototypes under θ⁰, once for each preprocessing that occurs in the zoo."""

    def __init__(self, dense: nn.Module, inputs: Inputs, labels: Tensor, batch_size: int) -> None:
        self.dense, self.inputs, self.labels, self.batch_size = dense, inputs, labels, batch_size
        self.cache: dict[str, Tensor] = {}

    def __call__(self, entry: ZooEntry) -> Tensor:
        key = seen_by(entry.facts)
        if key not in self.cache:
            features = features_of(self.dense, self.inputs(entry.facts), self.batch_size)
            self.cache[key] = class_means(features, self.labels)
        return self.cache[key]


def _prototypes(entry: ZooEntry, target: Tensor) -> np.ndarray:
    assert entry.prototypes is not None  # only such entries are asked
    if entry.prototypes.shape[1] != target.shape[1]:
        raise DamagedEntryError(
            f"Expected the prototypes of entry {entry.name!r} to have {target.shape[1]} features, as θ⁰ has, but got "
            f"{entry.prototypes.shape[1]}. Remove the entry from its zoo and prune this task again."
        )
    return entry.prototypes


def _finite(entry: ZooEntry, value: float) -> float:
    if not math.isfinite(value):
        raise DamagedEntryError(
            f"The similarity of entry {entry.name!r} is {value}. Are its weights or the images broken?"
        )
    return value


def _having(entries: Iterable[ZooEntry], what: str, has: Callable[[ZooEntry], bool]) -> list[ZooEntry]:
    """Those that have it; the others are named in a warning."""
    entries = list(entries)
    without = [entry.name for entry in entries if not has(entry)]
    if without:
        warnings.warn(f"Skipping zoo entries without {what}: {', '.join(without)}.", stacklevel=3)
    return [entry for entry in entries if has(entry)]


def _one_family(zoo: ModelZoo, config: str | None) -> tuple[str, ...]:
    """The names of the entries that are compared: of one pruning config, and those that were grown from them."""
    if not len(zoo):
        raise ValueError(f"The zoo at {zoo.path} is empty. Fill it with `mvp-prune`.")
    found, configs = families(zoo), zoo.configs
    if config is not None:
        if config not in found and config not in configs:
            raise ValueError(f"Expected `config` to be one of {list(configs)}, but got {config!r}.")
        return found.get(config) or configs[config]
    config = max(found, key=lambda key: len(found[key]))  # the first in order among equals
    if len(found) > 1:
        sizes = {key: len(names) for key, names in found.items()}
        warnings.warn(
            f"The zoo holds entries of several pruning configs ({sizes}); using {config}. Choose one by `config`.",
            stacklevel=3,
        )
    return found[config]
