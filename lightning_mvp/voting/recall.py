"""Which entries of a large zoo are worth reading: all are scored by one pass of the dense backbone."""

from __future__ import annotations

import warnings

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


def recalled(target: TargetData, *, by_leep: bool = True) -> list[str]:
    """Entries with prototypes, the most promising first. They are scored from the catalogue; no entry is opened.

    Args:
        target: the task, with the names of the entries to look at. θ⁰ sees its images once for each preprocessing that
            occurs among these.
        by_leep: score by :func:`recall_scores`, and leave out entries without a head, which LEEP can't score. If false,
            score by :func:`~lightning_mvp.zoo.prototypes.prototype_similarity` itself.

    Raises:
        ValueError: no entry has prototypes to be found by.
    """
    cards, names = catalogue(target.zoo), target.names
    prototypes = {
        name: cards[name].prototypes
        for name in names
        if name in cards and cards[name].prototypes is not None and (cards[name].has_head or not by_leep)
    }
    if len(prototypes) < len(names):
        warnings.warn(
            f"{len(names) - len(prototypes)} of {len(names)} zoo entries have no prototypes{' or no head' * by_leep}, "
            "or are damaged: they were not looked at. `shortlist=None` looks at all.",
            stacklevel=5,
        )
    kinds: dict[str, list[str]] = {}
    for name in prototypes:
        kinds.setdefault(seen_by(cards[name].seen_by), []).append(name)
    scores: dict[str, float] = {}
    for alike in kinds.values():
        try:
            features = target.features(cards[alike[0]].seen_by)
        except (ValueError, TypeError) as error:
            warnings.warn(f"Skipping {len(alike)} damaged zoo entries, such as {alike[0]}: {error}", stacklevel=5)
            continue
        fitting = [name for name in alike if prototypes[name].shape[1] == features.shape[1]]  # type: ignore[union-attr]
        if fitting and by_leep:
            rows, bounds = stacked([cards[name] for name in fitting])
            found = recall_scores(features, target.labels, torch.from_numpy(rows), bounds)
            scores |= dict(zip(fitting, found.tolist(), strict=True))
        elif fitting:
            means = class_means(features, target.labels)
            scores |= {name: prototype_similarity(prototypes[name], means) for name in fitting}
    if not scores:
        raise ValueError(
            f"No entry of the zoo at {target.zoo.path} has prototypes of θ⁰'s features to be found by. Take "
            "`shortlist=None`, which runs them all."
        )
    return sorted(scores, key=lambda name: (-scores[name], name))
