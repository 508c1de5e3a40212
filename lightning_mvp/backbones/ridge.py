"""The head that every compared method starts from: a ridge classifier in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Smaller penalties win leave-one-out on images that the backbone was pre-trained on, not on others, and their large
# weights blow up the first steps of fine-tuning.
PENALTIES = (1.0, 10.0, 100.0)
SCALES = tuple(2.0**exponent for exponent in range(0, 7))


def ridge_head(features: Tensor, labels: Tensor, n_classes: int) -> nn.Linear:
    r"""Fit a linear classifier in closed form, without a step of training.

    Ridge regression of centred one-hot labels Y on centred features X,
    :math:`W = (X^\top X + \lambda n \bar\sigma I)^{-1} X^\top Y` with :math:`\bar\sigma` the features' mean variance.
    Its outputs are near 0..1, too flat for a softmax, so they are multiplied by a scale. λ and the scale are those of
    :data:`PENALTIES` and :data:`SCALES` with the least leave-one-out cross-entropy, which is exact and free:
    :math:`\hat y_{-i} = (\hat y_i - h_{ii} y_i) / (1 - h_{ii})` (Hastie, Tibshirani, Friedman, "The Elements of
    Statistical Learning", equation 7.64). The same images give the same head; nothing is random.

    Args:
        features: ``(n, D)``, penultimate features of training images.
        labels: int64 ``(n,)`` in 0..n_classes-1.
        n_classes: number of classes; each needs at least one image.

    Returns:
        ``nn.Linear(D, n_classes)`` in float32.

    Raises:
        ValueError: shapes that don't fit, a class without images, or features that are not finite.

    Example:
        >>> features = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])
        >>> ridge_head(features, torch.tensor([0, 0, 1, 1]), 2)(features).argmax(1)
        tensor([0, 0, 1, 1])
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            f"Expected `features` of shape (n, D) and as many `labels`, but got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}."
        )
    missing = sorted(set(range(n_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"Expected at least one training image of each of {n_classes} classes, but got none of class(es) {missing}."
        )
    if not torch.isfinite(features).all():
        raise ValueError("Expected finite `features`, but got NaN or inf: the backbone's weights are damaged.")

    x, y = features.double(), F.one_hot(labels, n_classes).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    # One eigendecomposition serves every penalty.
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values = values.clamp_min(0)
    unit = max(float(values.mean()), 1e-12)
    projected = centred @ vectors
    moments = projected.T @ (y - mean_y)

    best: tuple[float, float, float] | None = None
    for penalty in PENALTIES:
        shrunk = 1 / (values + penalty * unit)
        fitted = mean_y + (projected * shrunk) @ moments
        leverage = ((projected.square() * shrunk).sum(1, keepdim=True) + 1 / len(x)).clamp_max(1 - 1e-6)
        left_out = (fitted - leverage * y) / (1 - leverage)
        for scale in SCALES:
            loss = float(F.cross_entropy(scale * left_out, labels))
            if best is None or loss < best[0]:
                best = (loss, penalty, scale)
    assert best is not None
    _, penalty, scale = best
    weight = vectors @ ((1 / (values + penalty * unit))[:, None] * moments)
    head = nn.Linear(x.shape[1], n_classes)
    with torch.no_grad():
        head.weight.copy_(scale * weight.T)
        head.bias.copy_(scale * (mean_y - mean_x @ weight))
    return head
