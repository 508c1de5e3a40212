"""How much the masks of two tasks have in common, and what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb

import torch

from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.zoo.rebuild import dense_backbone
from lightning_mvp.zoo.zoo import ModelZoo


def expected_random_iou(units: int, kept_a: int, kept_b: int) -> float:
    r"""The IoU expected of two independent uniformly random masks.

    :math:`E = \sum_i P(i)\, i / (a + b - i)` with the hypergeometric
    :math:`P(i) = \binom{a}{i}\binom{n-a}{b-i} / \binom{n}{b}` for an intersection of i units.

    Args:
        units: n, of the group.
        kept_a: a, kept by the one mask.
        kept_b: b, kept by the other.

    Returns:
        The expectation in [0, 1]; 1 where both keep all.

    Example:
        >>> expected_random_iou(2, 1, 1)  # the same unit half of the time
        0.5
        >>> expected_random_iou(10, 10, 10)
        1.0
    """
    total = comb(units, kept_b)
    return sum(
        comb(kept_a, both) * comb(units - kept_a, kept_b - both) / total * both / (kept_a + kept_b - both)
        for both in range(max(0, kept_a + kept_b - units), min(kept_a, kept_b) + 1)
        if kept_a + kept_b > both
    )


def overlap(a: Masks, b: Masks) -> dict[str, tuple[float, float]]:
    """IoU of two masks in each group, beside the value expected of random masks of the same widths.

    Returns:
        ``(IoU, expected)`` for each group.

    Example:
        >>> import torch
        >>> mask = Masks({"conv": torch.tensor([True, False])})
        >>> overlap(mask, mask)
        {'conv': (1.0, 0.5)}
    """
    iou: Mapping[str, float] = a.iou(b)
    return {name: (iou[name], expected_random_iou(len(a[name]), a.kept[name], b.kept[name])) for name in a}


def magnitude_masks(zoo: ModelZoo, kept: Mapping[str, int]) -> Masks:
    """θ⁰'s own magnitude masks of given widths: what two tasks have in common without either of them.

    Args:
        zoo: of a backbone that its recipe rebuilds.
        kept: units kept in each group.
    """
    backbone, recipe = dense_backbone(zoo), zoo.recipe
    assert recipe is not None, "dense_backbone needs it too"
    example = torch.zeros(1, recipe["in_chans"], recipe["input_size"], recipe["input_size"])
    groups = find_groups(backbone, example, check=False)
    return top_units(magnitude_importance(backbone.state_dict(), groups), kept)
