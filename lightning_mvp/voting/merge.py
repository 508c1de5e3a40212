"""The weights that a voted model starts with: means over the neighbours that have them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import EllipsisType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.units import Groups
from lightning_mvp.fingerprint import to_array
from lightning_mvp.pruning.choose import require_choice

Missing = Literal["theta0", "producer", "zero"]
Kept = tuple["np.ndarray | None", ...]
Combine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# The smallest coefficient where their mean is 1. With a smaller one a product may be denormal, and lose digits.
SMALLEST_COEFFICIENT = 1e-200


@dataclass(frozen=True)
class MergeResult:
    """What `merge` returns.

    Args:
        state: the target's small state, of θ⁰'s types.
        shares: fractions of the state's entries that came from "0", "1" and ">=2" neighbours.
    """

    state: dict[str, Tensor]
    shares: dict[str, float]


def merge(
    states: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Masks],
    target: Masks,
    groups: Groups,
    coefficients: Mapping[str, float] | None = None,
    *,
    theta0: Mapping[str, Any],
    missing: Missing = "theta0",
    combine: Combine | None = None,
) -> MergeResult:
    r"""Each entry is the mean over the neighbours that kept all the units it connects:
    :math:`w_e = \sum_{j \in J_e} a_j w_e^j / \sum_{j \in J_e} a_j`.

    Batch-norm statistics are pooled moments, :math:`\mu = \bar{\mu_j}`, :math:`\sigma^2 = \overline{\sigma_j^2 +
    \mu_j^2} - \mu^2 = \overline{\sigma_j^2 + (\mu_j - \mu)^2}`. Tensors without a unit axis are means over all
    neighbours; integers (counters) are rounded. Sums are float64 over entries sorted by name, element by element:
    neither the order of `states` nor the number of threads matters.

    An entry that no neighbour kept (:math:`J_e` is empty) becomes, by `missing`:

    - "theta0": θ⁰'s value;
    - "producer": the mean of θ⁰'s value, counted as one average neighbour, and of a zero from each neighbour that kept
      the entry's producer (the unit of axis 0), since that neighbour had the unit and cut this connection;
    - "zero": 0.

    One-dimensional tensors (biases, norms and their statistics) belong to a unit and not to a connection. They take
    θ⁰'s value under "producer" and "zero", too.

    One neighbour merged with its own masks gives back its weights, bit for bit. So do an entry that one of many
    neighbours kept, and neighbours that are equal, where θ⁰ is float32 or narrower; in float64 they may be some units
    in the last place away.

    Args:
        states: entry name → state, of which each tensor is either full or cut to that entry's masks.
        masks: entry name → its masks.
        target: the masks of the merged model.
        groups: the groups of the dense backbone.
        coefficients: entry name → a_j ≥ 0; None counts all alike, and 0 leaves a neighbour out.
        theta0: the dense pre-trained state; its names and types are those of the result.
        missing: how an entry is filled that no neighbour kept.
        combine: a function to use in place of the mean, see :meth:`lightning_mvp.voting.merges.Merge.combine`; None
            takes the mean. Integers and the statistics of batch norms are always means.

    Raises:
        ValueError: no neighbours, unknown `missing`, or a tensor that fits neither θ⁰ nor the neighbour's masks.
    """
    require_choice("missing", missing, Missing)
    if not states:
        raise ValueError("Expected argument `states` to hold at least one neighbour, but got none. Is the zoo empty?")
    weights = _weights({name: 1.0 if coefficients is None else float(coefficients[name]) for name in states})
    state: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    overlaps: dict[Hashable, _Overlap] = {}
    counts = np.zeros(3, dtype=np.int64)

    # Means come before variances, which are taken around them.
    for tensor in sorted(theta0, key=lambda name: name.endswith("running_var")):
        dense = to_array(theta0[tensor])
        key = (dense.shape, *((axis, group, index.tobytes()) for axis, group, index in groups.layout.get(tensor, ())))
        if key not in overlaps:
            kept = {name: groups.kept(tensor, dense.shape, masks[name]) for name in weights}
            overlaps[key] = _Overlap.of(dense.shape, groups.kept(tensor, dense.shape, target), kept, weights)
        overlap = overlaps[key]
        if combine is None or dense.dtype.kind != "f" or tensor.endswith(("running_mean", "running_var")):
            # The sum begins with −0, to which a weight of −0 can be added without becoming 0.
            mean = torch.full(overlap.shape, -0.0, dtype=torch.float64)
            for name, block in overlap.blocks.items():
                value = block.read(states[name][tensor], name, tensor)
                if tensor.endswith("running_var"):
                    sibling = tensor.removesuffix("var") + "mean"
                    value += (block.read(states[name][sibling], name, sibling) - means[sibling][block.rows]) ** 2
                block.add_to(mean, value.mul_(weights[name]))
            mean /= overlap.total
        else:
            values, present = overlap.stacked(
                {name: block.read(states[name][tensor], name, tensor) for name, block in overlap.blocks.items()}
            )
            mean = combine(
                values, present, torch.tensor([*weights.values()], dtype=torch.float64), _cut(dense, overlap.goal)
            )
            if mean.shape != values.shape[1:]:
                raise ValueError(
                    f"Expected argument `combine` to give a tensor of shape {tuple(values.shape[1:])} for {tensor!r}, "
                    f"but got {tuple(mean.shape)}. Reduce the first dimension only, the neighbours."
                )
            mean = mean.double()
        if overlap.entries[0]:
            start = _unseen(_cut(dense, overlap.goal), overlap.produced, missing)
            mean = torch.where(overlap.total == 0, start, mean)
        state[tensor] = _as_type(mean, dense.dtype)
        if tensor.endswith("running_mean"):
            means[tensor] = state[tensor].double()  # as it is stored, from which equal neighbours have no distance
        counts += overlap.entries

    shares = dict(zip(("0", "1", ">=2"), (counts / max(1, counts.sum())).tolist(), strict=True))
    return MergeResult({name: state[name] for name in theta0}, shares)


def _weights(coefficients: Mapping[str, float]) -> dict[str, float]:
    """The coefficients above 0, sorted by name, so that their mean is 1: a single neighbour has exactly 1."""
    above = {name: coefficients[name] for name in sorted(coefficients) if coefficients[name] > 0}
    average = sum(above.values()) / len(above)
    return {name: max(SMALLEST_COEFFICIENT, a / average) for name, a in above.items()}


def _unseen(theta0: Tensor, produced: Tensor, missing: Missing) -> Tensor:
    """The values of entries that no neighbour kept.

    Args:
        theta0: θ⁰'s values.
        produced: for each row the sum of the coefficients of those neighbours that kept its unit.
        missing: as in :func:`merge`.
    """
    if missing == "theta0" or theta0.ndim < 2:
        return theta0
    if missing == "zero":
        return torch.zeros_like(theta0)
    return theta0 / (1 + produced).reshape(-1, *[1] * (theta0.ndim - 1))


@dataclass(frozen=True)
class _Overlap:
    """Which entries of a tensor the neighbours have. Tensors of one shape and with the same units share it.

    Which neighbours have an entry depends only on its units, not on its place in a kernel. So axes without units have
    size 1 in `total`.

    Args:
        shape: shape of the target's tensor.
        goal: for each axis the entries that the target keeps.
        blocks: neighbour → the entries that it shares with the target.
        total: float64, for each entry the sum of the coefficients of the neighbours that have it; 0 if none has it.
        produced: float64 ``(rows,)``, for each row the sum of the coefficients of the neighbours that have it.
        entries: the numbers of the target's entries that no neighbour, one neighbour, and several neighbours have.
    """

    shape: tuple[int, ...]
    goal: Kept
    blocks: dict[str, _Block]
    total: Tensor
    produced: Tensor
    entries: np.ndarray

    @classmethod
    def of(cls, dense: tuple[int, ...], goal: Kept, kept: Mapping[str, Kept], weights: Mapping[str, float]) -> _Overlap:
        shape = _cut_shape(dense, goal)
        units = _cut_shape([1] * len(dense), goal)
        count, total = torch.zeros(units, dtype=torch.float64), torch.zeros(units, dtype=torch.float64)
        produced = torch.zeros(units[:1], dtype=torch.float64)
        blocks = {name: _Block.of(dense, goal, own) for name, own in kept.items()}
        for name, block in blocks.items():
            ones = torch.ones(block.units, dtype=torch.float64)
            block.add_to(count, ones)
            block.add_to(total, ones.mul_(weights[name]))
            produced[block.rows] += weights[name]
        nobody, one = int((count == 0).sum()), int((count == 1).sum())
        each = np.array([nobody, one, count.numel() - nobody - one])
        return cls(shape, goal, blocks, total, produced, each * (prod(shape) // count.numel()))

    def stacked(self, read: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The neighbours' values, and which entries each of them has, both ``(neighbours, *shape)`` of the target.

        Values that a neighbour lacks are 0.
        """
        values = torch.zeros(len(read), *self.shape, dtype=torch.float64)
        present = torch.zeros(len(read), *self.total.shape, dtype=torch.float64)
        for row, (name, value) in enumerate(read.items()):
            self.blocks[name].add_to(values[row], value)
            self.blocks[name].add_to(present[row], torch.ones(self.blocks[name].units, dtype=torch.float64))
        return values, (present > 0).expand(values.shape)


@dataclass(frozen=True)
class _Block:
    """The places in a neighbour's tensor of the entries that it shares with the target's.

    Args:
        shape: shape of a full tensor.
        cut_shape: shape of a tensor that is cut to the neighbour's masks.
        units: shape of what `read` returns, with 1 for axes without units: the rows that both have, then the target's
            entries of each axis.
        rows: the target's rows that the neighbour has, or an ellipsis for all.
        axes: axis → places in a full and in a cut tensor, int64.
        absent: axis after the first → the target's entries that the neighbour lacks, int64.
    """

    shape: tuple[int, ...]
    cut_shape: tuple[int, ...]
    units: tuple[int, ...]
    rows: Tensor | EllipsisType
    axes: dict[int, tuple[Tensor, Tensor]]
    absent: dict[int, Tensor]

    @classmethod
    def of(cls, shape: tuple[int, ...], goal: Kept, own: Kept) -> _Block:
        rows: Tensor | EllipsisType = ...
        axes, absent, units = {}, {}, [1] * len(shape)
        for axis, (wanted, kept) in enumerate(zip(goal, own, strict=True)):
            if wanted is None or kept is None:
                continue
            cut = np.minimum(np.searchsorted(kept, wanted), len(kept) - 1)
            there = kept[cut] == wanted
            if axis == 0:
                rows = torch.from_numpy(np.flatnonzero(there))
                wanted, cut = wanted[there], cut[there]
            else:  # also reads entries that the neighbour lacks, which is faster; `add_to` overwrites them
                absent[axis] = torch.from_numpy(np.flatnonzero(~there))
            axes[axis] = (torch.from_numpy(wanted), torch.from_numpy(cut))
            units[axis] = len(wanted)
        return cls(shape, _cut_shape(shape, own), tuple(units), rows, axes, absent)

    def read(self, value: Any, entry: str, tensor: str) -> Tensor:
        """The shared rows of a full or a cut tensor, a float64 copy. Its values at `absent` mean nothing."""
        array = to_array(value)
        if array.shape not in (self.shape, self.cut_shape):
            raise ValueError(
                f"Expected {tensor!r} of entry {entry!r} to have shape {self.cut_shape} (kept entries) or {self.shape} "
                f"(all), but got {array.shape}. Is it an entry of another backbone?"
            )
        taken = _as_tensor(array)
        for axis, (full, cut) in self.axes.items():
            taken = taken.index_select(axis, full if array.shape == self.shape else cut)
        return taken.to(torch.float64, copy=True)

    def add_to(self, total: Tensor, value: Tensor) -> None:
        """Add the shared entries of `value`, which comes from `read` and is changed.

        Each entry is summed by one plain addition for each neighbour. With an argument `alpha` torch would use fused
        multiply-adds, which round in another way, but only for whole vectors, whose bounds depend on the number of
        threads.
        """
        for axis, entries in self.absent.items():
            value.index_fill_(axis, entries, -0.0)
        if isinstance(self.rows, Tensor):
            total.index_add_(0, self.rows, value)
        else:
            total += value


def _cut_shape(shape: Sequence[int], kept: Kept) -> tuple[int, ...]:
    return tuple(size if index is None else len(index) for size, index in zip(shape, kept, strict=True))


def _cut(dense: np.ndarray, kept: Kept) -> Tensor:
    """The kept entries, float64."""
    result = _as_tensor(dense)
    for axis, index in enumerate(kept):
        if index is not None:
            result = result.index_select(axis, torch.from_numpy(index))
    return result.double()


def _as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, without a copy unless it is read-only or not contiguous."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _as_type(values: Tensor, dtype: np.dtype) -> Tensor:
    array = values.numpy()
    return torch.from_numpy(np.array(np.rint(array) if dtype.kind in "iu" else array, dtype=dtype))
