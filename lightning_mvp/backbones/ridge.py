"""The head that every compared method starts from: a ridge classifier in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones.passes import Place, Where

# Smaller penalties win leave-one-out on images that the backbone was pre-trained on, not on others, and their large
# weights blow up the first steps of fine-tuning.
PENALTIES = (1.0, 10.0, 100.0)
SCALES = tuple(2.0**exponent for exponent in range(0, 7))
# Of the features that are float64 at a time: 128 MB.
NUMBERS = 2**24


def ridge_head(features: Tensor, labels: Tensor, n_classes: int, where: Where = None) -> nn.Linear:
    r"""Fit a linear classifier in closed form, without a step of training.

    Ridge regression of centred one-hot labels Y on centred features X,
    :math:`W = (X^\top X + \lambda n \bar\sigma I)^{-1} X^\top Y` with :math:`\bar\sigma` the features' mean variance.
    Its outputs are near 0..1, too flat for a softmax, so they are multiplied by a scale. λ and the scale are those of
    :data:`PENALTIES` and :data:`SCALES` with the least leave-one-out cross-entropy, which is exact and free:
    :math:`\hat y_{-i} = (\hat y_i - h_{ii} y_i) / (1 - h_{ii})` (Hastie, Tibshirani, Friedman, "The Elements of
    Statistical Learning", equation 7.64). Of multi-hot labels it is the binary cross-entropy of
    :math:`\hat y - \frac12` times the scale. The same images give the same head; nothing is random.

    Sums are in float64 over blocks of images, so that only the float32 features take memory in proportion to n.

    Args:
        features: ``(n, D)``, penultimate features of training images. Where ranks share the fit: of this rank's.
        labels: int64 ``(n,)`` in 0..n_classes-1, or multi-hot ``(n, n_classes)`` of 0 and 1.
        n_classes: number of classes; each needs at least one image, but for multi-hot labels.
        where: the device to compute on, or a :class:`~lightning_mvp.backbones.passes.Place`, which also says whether
            ranks share the fit.

    Returns:
        ``nn.Linear(D, n_classes)`` in float32 on the CPU, the same on all ranks.

    Raises:
        ValueError: shapes that don't fit, a class without images, or features that are not finite.

    Example:
        >>> features = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])
        >>> ridge_head(features, torch.tensor([0, 0, 1, 1]), 2)(features).argmax(1)
        tensor([0, 0, 1, 1])
    """
    place = Place.at(where)
    several = labels.ndim == 2
    _require_fitting(features, labels, n_classes, several, place)
    if place.shared:  # a rank may have no image
        features = features.reshape(len(features), int(place.agreed(torch.tensor(features.shape[1]))))

    device, rows = place.exact.device or "cpu", max(1, NUMBERS // features.shape[1])
    blocks = list(zip(features.split(rows), labels.split(rows), strict=True))

    def x_of(part: Tensor) -> Tensor:
        return part.to(device).double()

    def y_of(own: Tensor) -> Tensor:
        own = own.to(device)
        return (own if several else F.one_hot(own, n_classes)).double()

    def summed(parts: Iterable[Tensor]) -> Tensor:
        return place.summed(reduce(torch.add, parts))

    n = int(place.summed(torch.tensor(len(features))))
    mean_x, mean_y = summed(x_of(part).sum(0) for part, _ in blocks) / n, summed(y_of(y).sum(0) for _, y in blocks) / n
    # One eigendecomposition serves every penalty.
    centred = (x_of(part) - mean_x for part, _ in blocks)
    values, vectors = torch.linalg.eigh(summed(x.T @ x for x in centred))
    values = values.clamp_min(0)
    unit = max(float(values.mean()), 1e-12)
    whole = [(x_of(blocks[0][0]) - mean_x) @ vectors] if len(blocks) == 1 else None

    def projected() -> Iterable[Tensor]:
        return whole or ((x_of(part) - mean_x) @ vectors for part, _ in blocks)

    moments = summed(x.T @ (y_of(own) - mean_y) for x, (_, own) in zip(projected(), blocks, strict=True))
    losses = torch.zeros(len(PENALTIES), len(SCALES), dtype=torch.float64)
    for x, (_, own) in zip(projected(), blocks, strict=True):
        y = y_of(own)
        for row, penalty in enumerate(PENALTIES):
            shrunk = 1 / (values + penalty * unit)
            fitted = mean_y + (x * shrunk) @ moments
            leverage = ((x.square() * shrunk).sum(1, keepdim=True) + 1 / n).clamp_max(1 - 1e-6)
            left_out = (fitted - leverage * y) / (1 - leverage)
            for column, scale in enumerate(SCALES):
                losses[row, column] += _loss(scale, left_out, y if several else own.to(device))
    best = int(place.summed(losses).argmin())  # the first of equals
    penalty, scale = PENALTIES[best // len(SCALES)], SCALES[best % len(SCALES)]
    weight = vectors @ ((1 / (values + penalty * unit))[:, None] * moments)
    head = nn.Linear(features.shape[1], n_classes)
    with torch.no_grad():
        head.weight.copy_(place.agreed(scale * weight.T))
        head.bias.copy_(place.agreed(scale * (mean_y - mean_x @ weight - (0.5 if several else 0.0))))
    return head


def _loss(scale: float, left_out: Tensor, labels: Tensor) -> float:
    """Summed over images."""
    if labels.ndim == 2:
        return float(F.binary_cross_entropy_with_logits(scale * (left_out - 0.5), labels, reduction="sum"))
    return float(F.cross_entropy(scale * left_out, labels, reduction="sum"))


def _require_fitting(features: Tensor, labels: Tensor, n_classes: int, several: bool, place: Place) -> None:
    """Refuse what can't be fitted, on all ranks alike."""
    if features.ndim != 2 or len(features) != len(labels) or (several and labels.shape[1] != n_classes):
        raise ValueError(
            f"Expected `features` of shape (n, D) and as many `labels`, (n,) or multi-hot (n, {n_classes}), but got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if not several:
        outside = [label for label in labels.unique().tolist() if not 0 <= label < n_classes]
        counts = labels[(labels >= 0) & (labels < n_classes)].cpu().bincount(minlength=n_classes)
        missing = (place.summed(counts) == 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"Expected at least one training image of each of {n_classes} classes, but got none of {missing}."
            )
        if outside:
            raise ValueError(f"Expected labels in 0..{n_classes - 1}, but got {outside[:5]}.")
    if int(place.summed((~torch.isfinite(features)).sum())):
        raise ValueError("Expected finite `features`, but got NaN or inf: the backbone's weights are damaged.")
