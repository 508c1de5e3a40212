"""The groups of a backbone that was cut, computed from those it had before, without tracing it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from lightning_mvp.backbones.masks import require_masks_fit
from lightning_mvp.backbones.units import Groups, Member, UnitGroup


def groups_left(groups: Groups, masks: Mapping[str, Any], backbone: nn.Module, n_features: int) -> Groups:
    """The groups that :func:`~lightning_mvp.backbones.groups.find_groups` would find in the small backbone. Pure.

    Args:
        groups: of the backbone before it was cut.
        masks: the units that are kept, one mask for each group.
        backbone: as it was before it was cut.
        n_features: how many features its output has.

    Returns:
        Groups of the same names, with index maps into the smaller tensors.

    Raises:
        ValueError: the masks are of another backbone.

    Example:
        >>> from lightning_mvp.backbones import find_groups, random_masks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, (2, 3, 8, 8))
        >>> groups_left(groups, random_masks(groups, 0.5, seed=0), net, 4)
        Groups of 6 units:
          0: 4 units (conv)
          2: 2 units (conv)
    """
    require_masks_fit(groups, masks)
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items() if name in groups.layout}
    kept = {name: groups.kept(name, shape, masks) for name, shape in shapes.items()}
    features = groups.kept_features(masks, n_features)

    def renumbered(index: np.ndarray, units: np.ndarray, entries: np.ndarray) -> np.ndarray:
        return np.searchsorted(entries, index[units]).astype(np.int64)

    def member_left(member: Member, units: np.ndarray) -> Member:
        entries = kept[member.tensor][member.axis]
        assert entries is not None, "the axis is the group's"
        return replace(member, index=renumbered(member.index, units, entries))

    def left(group: UnitGroup) -> UnitGroup:
        units = np.asarray(masks[group.name])
        return replace(
            group,
            size=int(units.sum()),
            members=tuple(member_left(member, units) for member in group.members),
            feature_index=None if group.feature_index is None else renumbered(group.feature_index, units, features),
        )

    return Groups([left(group) for group in groups], groups.skipped)
