"""Which entries of a large zoo are worth a look: all of them scored from one pass of the dense backbone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightning_mvp.backbones.features import features_of
from lightning_mvp.voting.leep import informative_labels
from lightning_mvp.voting.sources import Inputs, seen_by
from lightning_mvp.zoo.catalogue import catalogue, stacked
from lightning_mvp.zoo.prototypes import prototype_similarity
from lightning_mvp.zoo.zoo import ModelZoo

# Of the softmax over cosines. Of 0.05 to 0.5, tried with ten targets each of four kinds, 0.15 to 0.3 were as good.
TEMPERATURE = 0.2
# Entries whose probabilities are in memory at once: so many stay in a core's cache.
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


def recalled(
    zoo: ModelZoo,
    names: Sequence[str],
    inputs: Inputs,
    labels: Tensor,
    dense: nn.Module,
    *,
    by_leep: bool = True,
    batch_size: int = 128,
) -> list[str]:
    """Entries with prototypes, the most promising first: from the catalogue, no entry is opened.

    Args:
        zoo: their zoo.
        names: of the entries.
        inputs: the target's images.
        labels: of these images.
        dense: the zoo's θ⁰, which sees the images once for each preprocessing in the zoo.
        by_leep: by :func:`recall_scores`, without the entries that have no head, which LEEP can't score; else by
            :func:`~lightning_mvp.zoo.prototypes.prototype_similarity` itself.
        batch_size: images a pass.

    Raises:
        ValueError: no entry has prototypes to be found by.
    """
    cards = catalogue(zoo)
    having = [
        name
        for name in names
        if name in cards and cards[name].prototypes is not None and (cards[name].has_head or not by_leep)
    ]
    if len(having) < len(names):
        warnings.warn(
            f"{len(names) - len(having)} of {len(names)} zoo entries have no prototypes{' or no head' * by_leep}, or "
            "are damaged: they were not looked at. `shortlist=None` looks at all.",
            stacklevel=4,
        )
    kinds: dict[str, list[str]] = {}
    for name in having:
        kinds.setdefault(seen_by(cards[name].seen_by), []).append(name)
    scores: dict[str, float] = {}
    for alike in kinds.values():
        try:
            seen = inputs(cards[alike[0]].seen_by)
        except (ValueError, TypeError) as error:
            warnings.warn(f"Skipping {len(alike)} damaged zoo entries, such as {alike[0]}: {error}", stacklevel=4)
            continue
        features = features_of(dense, seen, batch_size)
        own = [name for name in alike if cards[name].prototypes.shape[1] == features.shape[1]]  # type: ignore[union-attr]
        if own and by_leep:
            prototypes, bounds = stacked([cards[name] for name in own])
            found = recall_scores(features, torch.as_tensor(labels), torch.from_numpy(prototypes), bounds)
            scores |= dict(zip(own, found.tolist(), strict=True))
        elif own:
            target = class_means(features, torch.as_tensor(labels))
            scores |= {name: prototype_similarity(cards[name].prototypes, target) for name in own}
    if not scores:
        raise ValueError(
            f"No entry of the zoo at {zoo.path} has prototypes of θ⁰'s features to be found by. Take `shortlist=None`, "
            "which runs them all."
        )
    return sorted(scores, key=lambda name: (-scores[name], name))
