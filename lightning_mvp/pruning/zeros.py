"""Masks read off the weights that are zero, and a check that masks and weights agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks, dead_entries


def masks_from_zeros(backbone: nn.Module, groups: Groups) -> Masks:
    """Masks that remove exactly those units whose producer entries are all 0.

    Weights are read as the forward pass uses them, so ``torch.nn.utils.prune`` and parametrizations are honoured.

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
            weight = _weight(backbone, member.tensor).cpu()
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


def require_zeroed(backbone: nn.Module, groups: Groups, masks: Mapping[str, Any]) -> None:
    """Refuse masks that remove units which are not zero, since cutting those would change what the model computes.

    Args:
        backbone: at its full size.
        groups: its groups.
        masks: one for each group.

    Raises:
        ValueError: a removed unit owns entries that are not zero, or the backbone has been cut already.

    Example:
        >>> from lightning_mvp.backbones import apply_masks, find_groups, random_masks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, torch.zeros(1, 3, 8, 8))
        >>> masks = random_masks(groups, 0.5, seed=0)
        >>> apply_masks(net, groups, masks)
        >>> require_zeroed(net, groups, masks)
    """
    for name, parts in dead_entries(groups, masks).items():
        weight, owners = _weight(backbone, name), ", ".join(dict.fromkeys(f"`{g}`" for _, g, _ in groups.layout[name]))
        for axis, entries in parts:
            if weight.shape[axis] <= int(entries.max()):
                raise ValueError(
                    f"Expected `{name}` (group {owners}) at its full size, but its axis {axis} has only "
                    f"{weight.shape[axis]} entries: weights of a smaller model have been loaded. Load the zeroed ones."
                )
            dead = weight.index_select(axis, entries.to(weight.device))
            if dead.any():
                raise ValueError(
                    f"Expected removed units to be zero, but {int(dead.count_nonzero())} of their {dead.numel()} "
                    f"entries in `{name}` (group {owners}) are not: since these masks were made, the weights of an "
                    "earlier, unpruned or averaged model have been loaded. Load those that were pruned with the masks "
                    "(PrunedCheckpoint keeps the best of them), or cut a checkpoint by its own masks: "
                    "MVPCallback.small_model_from(checkpoint, module)."
                )


def _weight(backbone: nn.Module, name: str) -> Tensor:
    """A tensor as the forward pass uses it."""
    owner, _, attribute = name.rpartition(".")
    weight: Tensor = getattr(backbone.get_submodule(owner), attribute)
    return weight.detach()
