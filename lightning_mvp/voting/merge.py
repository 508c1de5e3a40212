"""The start of a voted model: its weights as means over the neighbours that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.units import Groups
from lightning_mvp.fingerprint import to_array

Missing = Literal["theta0", "producer", "zero"]
Kept = tuple["np.ndarray | None", ...]


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
) -> MergeResult:
    r"""Each entry is the mean over the neighbours that kept all the units it connects:
    :math:`w_e = \sum_{j \in J_e} a_j w_e^j / \sum_{j \in J_e} a_j`.

    Batch-norm statistics are pooled moments, :math:`\mu = \bar{\mu_j}`, :math:`\sigma^2 = \overline{\sigma_j^2 +
    \mu_j^2} - \mu^2 = \overline{\sigma_j^2 + (\mu_j - \mu)^2}`. Tensors without a unit axis are means over all
    neighbours; integers (counters) are rounded. Sums are float64 over entries sorted by name.

    An entry that no neighbour kept (:math:`J_e` is empty) becomes, by `missing`:

    - "theta0": θ⁰'s value;
    - "producer": the mean of θ⁰'s value, counted as one average neighbour, and of a zero from each neighbour that kept
      the entry's producer (the unit of axis 0): those had the unit, and cut this connection;
    - "zero": 0. One-dimensional tensors (biases, norms and their statistics) belong to a unit, not to a connection,
      and take θ⁰'s value under "producer" and "zero" too.

    One neighbour merged with its own masks gives back its weights, bit for bit.

    Args:
        states: entry name → state, each tensor either full or cut to that entry's masks.
        masks: entry name → its masks.
        target: the masks of the merged model.
        groups: of the dense backbone.
        coefficients: entry name → a_j ≥ 0; None counts all alike, and 0 leaves a neighbour out.
        theta0: the dense pre-trained state; its names and types are those of the result.
        missing: what an entry gets that no neighbour kept.

    Raises:
        ValueError: no neighbours, unknown `missing`, or a tensor that fits neither θ⁰ nor the neighbour's masks.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"Expected argument `missing` to be one of {get_args(Missing)}, but got {missing!r}.")
    if not states:
        raise ValueError("Expected argument `states` to hold at least one neighbour, but got none. Is the zoo empty?")
    raw = {name: 1.0 if coefficients is None else float(coefficients[name]) for name in sorted(states)}
    average = sum(raw.values()) / sum(a > 0 for a in raw.values())
    weights = {name: a / average for name, a in raw.items() if a > 0}
    merged: dict[str, np.ndarray] = {}
    counts = np.zeros(3, dtype=np.int64)

    # Means come before variances, which are taken around them.
    for tensor in sorted(theta0, key=lambda name: name.endswith("running_var")):
        dense = to_array(theta0[tensor])
        goal = groups.kept(tensor, dense.shape, target)
        start = _cut(dense, goal).astype(np.float64)
        mean, total = np.zeros_like(start), np.zeros_like(start)
        count = np.zeros(start.shape, dtype=np.int64)
        produced = np.zeros(start.shape[:1])
        for name, a in weights.items():
            block = _Block.of(dense.shape, goal, groups.kept(tensor, dense.shape, masks[name]))
            value = block.read(states[name][tensor], name, tensor)
            if tensor.endswith("running_var"):
                sibling = tensor.removesuffix("var") + "mean"
                value = value + (block.read(states[name][sibling], name, sibling) - merged[sibling][block.target]) ** 2
            total[block.target] += a
            count[block.target] += 1
            # A running mean: exact for the first neighbour (share 1) and for equal neighbours (difference 0).
            before, share = mean[block.target], a / total[block.target]
            mean[block.target] = np.where(share == 1, value, before + share * (value - before))
            if start.ndim > 1:
                produced[block.rows] += a
        if missing != "theta0" and start.ndim > 1:
            shape = (-1, *[1] * (start.ndim - 1))
            start = start / (1 + produced.reshape(shape)) if missing == "producer" else np.zeros_like(start)
        merged[tensor] = np.where(count > 0, mean, start)
        counts += np.bincount(np.minimum(count, 2).ravel(), minlength=3)

    state = {name: _as_type(merged[name], to_array(theta0[name]).dtype) for name in theta0}
    shares = dict(zip(("0", "1", ">=2"), (counts / max(1, counts.sum())).tolist(), strict=True))
    return MergeResult(state, shares)


@dataclass(frozen=True)
class _Block:
    """The entries that target and neighbour share: positions in the target, the dense tensor and the cut one."""

    shape: tuple[int, ...]
    cut_shape: tuple[int, ...]
    rows: np.ndarray
    target: tuple[np.ndarray, ...]
    dense: tuple[np.ndarray, ...]
    cut: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], goal: Kept, own: Kept) -> _Block:
        shared = []
        for size, wanted, kept in zip(shape, goal, own, strict=True):
            everything = np.arange(size)
            wanted = everything if wanted is None else wanted
            kept = everything if kept is None else kept
            shared.append((*np.intersect1d(wanted, kept, assume_unique=True, return_indices=True), len(kept)))
        dense, target, cut, lengths = zip(*shared, strict=True) if shared else ((), (), (), ())
        rows = target[0] if shape else np.zeros(0, np.int64)
        return cls(shape, lengths, rows, np.ix_(*target), np.ix_(*dense), np.ix_(*cut))

    def read(self, value: Any, entry: str, tensor: str) -> np.ndarray:
        """The shared entries of a full or a cut tensor, in float64."""
        array = to_array(value)
        if array.shape not in (self.shape, self.cut_shape):
            raise ValueError(
                f"Expected {tensor!r} of entry {entry!r} to have shape {self.cut_shape} (kept entries) or {self.shape} "
                f"(all), but got {array.shape}. Is it an entry of another backbone?"
            )
        return array[self.dense if array.shape == self.shape else self.cut].astype(np.float64)


def _cut(dense: np.ndarray, kept: Kept) -> np.ndarray:
    return dense[np.ix_(*(np.arange(n) if k is None else k for n, k in zip(dense.shape, kept, strict=True)))]


def _as_type(values: np.ndarray, dtype: np.dtype) -> Tensor:
    return torch.from_numpy(np.array(np.rint(values) if dtype.kind in "iu" else values, dtype=dtype))
