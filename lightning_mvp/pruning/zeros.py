"""Masks read off a model that something else pruned by zeroing whole units."""

from __future__ import annotations

import torch
from torch import nn

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks


def masks_from_zeros(backbone: nn.Module, groups: Groups) -> Masks:
    """A unit is dropped if, and only if, all its producer entries are 0.

    Weights are read as the forward pass sees them, so ``torch.nn.utils.prune`` and parametrizations are honoured.

    Args:
        backbone: the model, at its full size.
        groups: groups of units found on it while it was dense.

    Returns:
        The masks.

    Raises:
        ValueError: a tensor is missing or smaller than the groups say: the model was cut physically.
    """
    masks = {}
    for group in groups:
        kept = torch.zeros(group.size, dtype=torch.bool)
        for member in group.members:
            if member.role != "producer":
                continue
            owner, _, attribute = member.tensor.rpartition(".")
            weight = getattr(backbone.get_submodule(owner), attribute).detach().cpu()
            if weight.shape[member.axis] <= int(member.index.max()):
                raise ValueError(
                    f"Expected `{member.tensor}` at its full size, but its axis {member.axis} has "
                    f"{weight.shape[member.axis]} entries and group `{group.name}` reaches {int(member.index.max())}. "
                    "A physically cut model keeps no record of which units were removed; export masks before cutting."
                )
            others = [dim for dim in range(weight.ndim) if dim != member.axis]
            nonzero = (weight != 0).any(dim=others) if others else weight != 0
            kept |= nonzero[torch.as_tensor(member.index)].any(dim=1)
        masks[group.name] = kept
    return Masks(masks)
