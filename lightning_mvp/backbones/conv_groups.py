"""Grouped and depthwise convolutions: their conv groups stand and fall as wholes, inputs and outputs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Labels = np.ndarray


def block_labels(index: np.ndarray, channels: int, groups: int) -> Labels:
    """Which conv group each channel of a set belongs to.

    Args:
        index: int64 ``(channels of the set, 1)``: where each is among the convolution's inputs (or outputs).
        channels: how many inputs (or outputs) the convolution has.
        groups: its number of conv groups.

    Example:
        >>> block_labels(np.arange(6)[:, None], channels=6, groups=3).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    return index[:, 0] // (channels // groups)


def joined(sizes: Sequence[int], blocks: Sequence[Sequence[tuple[int, Labels]]]) -> list[np.ndarray] | None:
    """The smallest units that no conv group is divided by.

    Args:
        sizes: the number of channels of each set.
        blocks: for each grouped convolution its inputs and its outputs: the set they are, and the conv group of each
            channel. What has the same number in either is one conv group.

    Returns:
        For each set int64 ``(units, channels of one)``, ascending; None where units would have unequal parts of it.

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
