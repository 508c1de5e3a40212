"""How much the masks of two tasks have in common, and what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.zoo.chance import expected_random_iou
from lightning_mvp.zoo.rebuild import dense_backbone
from lightning_mvp.zoo.zoo import ModelZoo


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
    return {name: (iou[name], float(expected_random_iou(len(a[name]), a.kept[name], b.kept[name]))) for name in a}


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
