"""Which entries of a large zoo are worth reading: all are scored by one pass of the dense backbone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_mvp.voting.labels import informative_labels
from lightning_mvp.voting.sources import TargetData, seen_by
from lightning_mvp.zoo.catalogue import catalogue, stacked
from lightning_mvp.zoo.prototypes import prototype_similarity

# Temperature of the softmax over cosines. Of 0.05 to 0.5, tried with ten targets each of four kinds, 0.15 to 0.3 were
# equally good.
TEMPERATURE = 0.2
# Number of entries whose probabilities are computed at once: those of so many fit into a core's cache.
CHUNK = 64


def recall_scores(features: Tensor, labels: Tensor, prototypes: Tensor, bounds: np.ndarray) -> np.ndarray:
    r"""What LEEP might be, had each source no model but the prototypes of its classes (ours).

    The source's class probabilities are taken to be a softmax over cosines of θ⁰'s features and its prototypes,
    :math:`θ(x)_z ∝ \exp(\cos(f(x) - c,\; p_z - c) / T)`, with c the mean of the target's features, and LEEP is computed
    with these as in :func:`~lightning_mvp.voting.leep.leep`: all sources by one product, without running a source.
    Multi-hot labels count as in LEEP: the mean over labels, each of two classes.

    Args:
        features: ``(n, D)``, of the dense θ⁰ on the target's images.
        labels: integers ``(n,)``, or multi-hot ``(n, L)``.
        prototypes: ``(rows, D)``, class means of θ⁰'s features, one source after the other.
        bounds: ``(sources + 1,)`` ascending: source s has the rows ``bounds[s]:bounds[s + 1]``, at least one.

    Returns:
        float64 ``(sources,)``; greater is more promising.

    Example:
        >>> features = torch.eye(2).repeat(3, 1)
        >>> labels = torch.tensor([0, 1] * 3)
        >>> prototypes = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.5, 0.5], [0.4, 0.4]])
        >>> recall_scores(features, labels, prototypes, np.array([0, 2, 4])).argmax()
        np.int64(0)
    """
    if labels.ndim == 2:
        telling = informative_labels(labels).long()
        each = [recall_scores(features, telling[:, label], prototypes, bounds) for label in range(telling.shape[1])]
        return np.mean(each, axis=0)
    centre = features.mean(0)
    seen = normalize(features - centre)
    directions = normalize(prototypes - centre) / TEMPERATURE
    classes, index = labels.unique(return_inverse=True)
    counts, scores = np.diff(bounds), np.empty(len(bounds) - 1)
    for count in np.unique(counts).tolist():
        sources = np.flatnonzero(counts == count)
        for part in np.array_split(sources, -(-len(sources) // CHUNK)):
            rows = torch.from_numpy((bounds[part][:, None] + np.arange(count)).ravel())
            # torch's softmax takes several times as long over a few classes; cosines can't overflow.
            theta = (seen @ directions[rows].T).exp_().view(len(seen), len(part), count)
            theta = theta / theta.sum(2, keepdim=True)
            joint = theta.new_zeros(len(classes), len(part), count).index_add_(0, index, theta)
            conditional = joint / theta.sum(0)  # a softmax of cosines leaves no class without mass
            scores[part] = (conditional[index] * theta).sum(2).log().mean(0).double().numpy()
    return scores


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Prototypes: the mean feature of each class, ``(n, D), (n,) → (C, D)``, in the order of the sorted labels.

    Of multi-hot labels ``(n, L)``, each label's prototype is the mean of the images that have it; labels that every
    image has, or none, get none.
    """
    if labels.ndim == 2:
        present = informative_labels(labels).to(features)
        return present.T @ features / present.sum(0)[:, None]
    classes, index = labels.unique(return_inverse=True)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, index, features)
    return sums / index.bincount(minlength=len(classes))[:, None]


@dataclass(frozen=True)
class Recalled:
    """What a search of a zoo says before any entry is run.

    Args:
        order: entries that have prototypes, the most promising first.
        others: entries of which only running them tells how near they are: they have a head, but no prototypes.
    """

    order: list[str]
    others: list[str]


def recalled(target: TargetData, *, by_leep: bool = True) -> Recalled:
    """All entries, scored from the catalogue: none is opened.

    Args:
        target: the task, with the names of the entries to look at. θ⁰ sees its images once for each preprocessing in
            which prototypes were made: once, where all were made in the zoo's.
        by_leep: score by :func:`recall_scores`, and leave out entries without a head, which LEEP can't score. If false,
            score by :func:`~lightning_mvp.zoo.prototypes.prototype_similarity` itself, and leave out those without
            prototypes.

    Raises:
        ValueError: no entry can be scored.
    """
    cards, names = catalogue(target.zoo), target.names
    usable = {name: cards[name] for name in names if name in cards and (cards[name].has_head or not by_leep)}
    others = [name for name, card in usable.items() if by_leep and card.prototypes is None]
    kinds: dict[str, list[str]] = {}
    for name, card in usable.items():
        if card.prototypes is not None:
            kinds.setdefault(seen_by(card.seen_by), []).append(name)
    left_out = len(names) - len(others) - sum(map(len, kinds.values()))
    if left_out:
        warnings.warn(
            f"{left_out} of {len(names)} zoo entries have no {'head' if by_leep else 'prototypes'}, or are damaged: "
            f"they were not looked at, as {'LEEP' if by_leep else 'this similarity'} can't compare them.",
            stacklevel=5,
        )
    scores: dict[str, float] = {}
    for alike in kinds.values():
        try:
            features = target.features(cards[alike[0]].seen_by)
        except (ValueError, TypeError) as error:
            warnings.warn(f"Skipping {len(alike)} damaged zoo entries, such as {alike[0]}: {error}", stacklevel=5)
            continue
        rows = {name: cards[name].prototypes for name in alike}
        fitting = [name for name in alike if rows[name].shape[1] == features.shape[1]]  # type: ignore[union-attr]
        if by_leep:
            others += [name for name in alike if name not in fitting]
        if fitting and by_leep:
            prototypes, bounds = stacked([cards[name] for name in fitting])
            found = recall_scores(features, target.labels, torch.from_numpy(prototypes), bounds)
            scores |= dict(zip(fitting, found.tolist(), strict=True))
        elif fitting:
            means = class_means(features, target.labels)
            scores |= {name: prototype_similarity(rows[name], means) for name in fitting}
    if others:
        warnings.warn(
            f"{len(others)} of {len(names)} zoo entries, such as {others[0]}, have no prototypes of θ⁰'s features, by "
            "which a search finds entries without running them: the models of all of these are run, which takes "
            "longer. Made anew they have some; where MVPCallback finds none, give it a `prototype_loader`.",
            stacklevel=5,
        )
    if not scores and not others:
        raise ValueError(
            f"No entry of the zoo at {target.zoo.path} has prototypes of θ⁰'s features to be found by"
            f"{', or a head to be run' if by_leep else ''}. Fill it with `mvp-prune`, or take `shortlist=None`, which "
            "says of each entry what is wrong."
        )
    return Recalled(sorted(scores, key=lambda name: (-scores[name], name)), others)
