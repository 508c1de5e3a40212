"""Grouped and depthwise convolutions: a conv group is kept or removed whole, its inputs with its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn.modules.conv import _ConvNd

Labels = np.ndarray


def conv_groups_of(module: Any) -> int:
    """The number of conv groups of a grouped or depthwise convolution, 0 for anything else."""
    return int(module.groups) if isinstance(module, _ConvNd) and module.groups > 1 else 0


def is_depthwise(module: Any) -> bool:
    """Whether each channel is a conv group: Torch-Pruning takes inputs and outputs of such a convolution for one."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels == module.out_channels


def block_labels(index: np.ndarray, channels: int, groups: int) -> Labels:
    """Which conv group each channel of a set belongs to.

    Args:
        index: int64 ``(channels of the set, 1)``: the place of each among the convolution's inputs or outputs.
        channels: how many inputs or outputs the convolution has.
        groups: its number of conv groups.

    Example:
        >>> block_labels(np.arange(6)[:, None], channels=6, groups=3).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    return index[:, 0] // (channels // groups)


def joined(sizes: Sequence[int], blocks: Sequence[Sequence[tuple[int, Labels]]]) -> list[np.ndarray] | None:
    """The smallest units that divide no conv group.

    Args:
        sizes: the number of channels of each set.
        blocks: for each grouped convolution two pairs, of its inputs and of its outputs: the number of the set that
            they are, and the conv group of each channel in it.

    Returns:
        For each set the channels of each unit, int64 ``(units, channels of one)``, ascending; None where the units
        would own unequal numbers of channels.

    Example:
        >>> joined([4, 2], [[(0, np.array([0, 0, 1, 1])), (1, np.array([0, 1]))]])
        [array([[0, 1],
               [2, 3]]), array([[0],
               [1]])]
    """
    ends = np.cumsum(sizes)
    spans = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    unit, before = np.arange(ends[-1]), None
    while before is None or not np.array_equal(unit, before):
        before = unit.copy()
        for sides in blocks:
            lowest = np.full(1 + max(int(labels.max()) for _, labels in sides), len(unit))
            for number, labels in sides:
                np.minimum.at(lowest, labels, unit[spans[number]])
            for number, labels in sides:
                unit[spans[number]] = np.minimum(unit[spans[number]], lowest[labels])
    names = np.unique(unit)
    members = []
    for span in spans:
        own = unit[span]
        order, (found, counts) = np.argsort(own, kind="stable"), np.unique(own, return_counts=True)
        if not np.array_equal(found, names) or len(set(counts.tolist())) != 1:
            return None
        members.append(order.reshape(len(names), -1))
    return members
