"""LEEP, the likelihoods that it is the mean of, and sources that predict a task together. Pure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.voting.labels import as_labels, informative_labels


def leep(probabilities: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    r"""Log Expected Empirical Prediction (Nguyen et al., "LEEP", ICML 2020): with the source model's class
    probabilities θ(x)_z on the target's data,
    :math:`P(y,z) = \frac1n \sum_{i: y_i=y} θ(x_i)_z`, :math:`P(y|z) = P(y,z) / \sum_y P(y,z)`,
    :math:`\mathrm{LEEP} = \frac1n \sum_i \log \sum_z P(y_i|z)\, θ(x_i)_z \le 0`.

    A source class of zero mass contributes nothing. Computed in float64.

    With several labels per image, each label l is a target of two classes, present or absent, and the score is the
    mean over labels (ours): with the binary :math:`y_{il}`,
    :math:`\mathrm{LEEP} = \frac1L \sum_l \frac1n \sum_i \log \sum_z P_l(y_{il}|z)\, θ(x_i)_z`. Labels that every
    image has, or none, would add 0 whatever the source is, and are left out.

    Args:
        probabilities: ``(n, Z)``, rows that sum to 1.
        labels: the target's labels, as :func:`~lightning_mvp.voting.labels.as_labels` takes them: class indices
            ``(n,)``, or multi-hot ``(n, L)`` of 0 and 1.

    Returns:
        A number ≤ 0. It is 0 for a source that tells the target's classes apart perfectly, and −H(y) for one whose
        predictions say nothing (with several labels per image the mean of their −H).

    Raises:
        ValueError: shapes that do not fit, no images, rows that are no probabilities, labels that ``as_labels``
            refuses, or multi-hot labels that are the same for all images.

    Example:
        >>> theta = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]], dtype=torch.float64)
        >>> round(leep(theta, torch.tensor([0, 0, 1, 1])), 10)
        -0.4712479065
        >>> round(leep(theta, torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])), 10)
        -0.4712479065
    """
    theta = torch.as_tensor(probabilities).detach().double()
    target = as_labels(labels).to(theta.device)
    if theta.ndim != 2 or len(target) != len(theta) or not theta.numel():
        raise ValueError(
            "Expected argument `probabilities` of shape (n, Z) with n ≥ 1 and `labels` of shape (n,) or (n, L), "
            f"but got {tuple(theta.shape)} and {tuple(target.shape)}."
        )
    # Written so that NaN fails too.
    if not (bool((theta >= 0).all()) and bool(((theta.sum(1) - 1).abs() < 1e-3).all())):
        raise ValueError("Expected rows of `probabilities` to be ≥ 0 and sum to 1, but some are not. Apply a softmax.")
    expected = _expected(theta, target) if target.ndim == 1 else _expected_of_each_label(theta, target)
    # Rounding may raise the score of a perfect source slightly above 0.
    return min(0.0, float(expected.log().mean()))


def expected_predictions(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""The likelihoods whose mean logarithm is LEEP, :math:`\sum_z P(y_i|z)\, θ(x_i)_z`: ``(n, Z), (n,) → (n,)``."""
    theta = probabilities.detach().double()
    return _expected(theta, labels.to(theta.device))


def covering_order(expected: Tensor, k: int) -> list[int]:
    r"""Sources that predict the target *together* (ours), chosen one after the other.

    Each next one makes the log-likelihood of the chosen ones' mean prediction greatest, :math:`\frac1n \sum_i \log
    \frac1{|S|} \sum_{j \in S} p_i^j`.

    Args:
        expected: ``(sources, n)``, each row from :func:`expected_predictions`.
        k: how many sources to choose.

    Returns:
        Their rows, in the order of choice. The first is the nearest by LEEP; of equal ones the first row is chosen.

    Example:
        >>> covering_order(torch.tensor([[0.8, 0.2], [0.7, 0.2], [0.2, 0.6]]), 2)
        [0, 2]
    """
    chosen: list[int] = []
    total = torch.zeros_like(expected[0])
    for _ in range(min(k, len(expected))):
        gains = ((total + expected) / (len(chosen) + 1)).log().mean(1)
        gains[chosen] = -torch.inf
        best = int(gains.argmax())
        chosen.append(best)
        total = total + expected[best]
    return chosen


def _expected(theta: Tensor, labels: Tensor) -> Tensor:
    r""":math:`\sum_z P(y_i|z) θ(x_i)_z`, ``(n,)``."""
    classes, index = labels.unique(return_inverse=True)
    joint = theta.new_zeros(len(classes), theta.shape[1]).index_add_(0, index, theta)
    conditional = _per_mass(joint, theta.sum(0))
    return (conditional[index] * theta).sum(1)


def _expected_of_each_label(theta: Tensor, labels: Tensor) -> Tensor:
    r""":math:`\sum_z P_l(y_{il}|z) θ(x_i)_z`, ``(n, labels that tell images apart)``."""
    present = informative_labels(labels).to(theta)
    mass = theta.sum(0)
    # Both are computed as sums, since a difference could cancel to 0, whose logarithm is not finite.
    has, lacks = (_per_mass(part.T @ theta, mass) for part in (present, 1 - present))
    return torch.where(present > 0, theta @ has.T, theta @ lacks.T)


def _per_mass(joint: Tensor, mass: Tensor) -> Tensor:
    return torch.where(mass > 0, joint / mass.where(mass > 0, 1.0), 0.0)


def label_entropy(labels: Tensor) -> float:
    """H(y) in nats, with several labels per image their mean: minus the LEEP of a source that says nothing.

    Example:
        >>> round(label_entropy(torch.tensor([0, 1, 2, 3])), 4)
        1.3863
    """
    return -leep(torch.ones(len(labels), 1), labels)
