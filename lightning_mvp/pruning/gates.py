"""The loss's derivative by a gate on each unit's output, from which Taylor scores are computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_mvp.backbones.units import UnitGroup


class GateGradients:
    r"""The loss's derivative by a gate of value 1 on each unit's output, from the gradients of the weights.

    For a gate z on the output of a tensor that is linear in its weights w, :math:`\partial L / \partial z_k =
    \sum_{i \in k} w_i\, \partial L / \partial w_i` (Molchanov et al., "Importance Estimation for Neural Network
    Pruning", CVPR 2019, section 3.1 on gates). Where a unit ends in a norm, w are its γ and β, else the producer's
    weights and bias; for an MLP's hidden unit the second layer's columns; for a head the output projection's columns.
    The derivatives of a residual group's members add up. For a convolution in front of a batch norm in train mode the
    sum over its own filters would be zero, because the norm makes the output independent of their scale.

    All groups are computed together, in a few tensor operations, because this happens in every training step.

    Args:
        groups: the backbone's groups of units; their members with ``gate=True`` are used.

    Example:
        >>> import numpy as np
        >>> from lightning_mvp.backbones.units import Member
        >>> member = Member("weight", 0, np.array([[0], [1]]), "norm", True)
        >>> gates = GateGradients([UnitGroup("bn", "conv", 2, (member,), None)])
        >>> gates({"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 0.5])})
        tensor([3., 1.])
    """

    def __init__(self, groups: Iterable[UnitGroup]) -> None:
        self.groups = list(groups)
        gates = [member for group in self.groups for member in group.members if member.gate]
        self._axes = list(dict.fromkeys((member.tensor, member.axis) for member in gates))
        self.tensors = list(dict.fromkeys(name for name, _ in self._axes))
        """Names of the parameters whose gradients are read."""
        self._entries: list[Tensor] | None = None

    def __call__(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> Tensor:
        """The derivatives of one backward pass.

        Args:
            parameters: the backbone's parameters by name, at least :attr:`tensors`.
            gradients: their gradients by the same names.

        Returns:
            float32 ``(units of all groups,)``, group after group, on the gradients' device.
        """
        values = [parameters[name].detach().float() for name, _ in self._axes]
        slopes = [gradients[name].float() for name, _ in self._axes]  # type: ignore[union-attr]
        vectors = [i for i, value in enumerate(values) if value.ndim == 1]
        along: dict[int, Tensor] = {}
        if vectors:
            products = torch._foreach_mul([values[i] for i in vectors], [slopes[i] for i in vectors])
            along |= dict(zip(vectors, products, strict=True))
        for i, (_, axis) in enumerate(self._axes):
            if i not in along:  # one after the other, because the products of all matrices would not fit into the cache
                product = values[i] * slopes[i]
                along[i] = product.sum([dim for dim in range(product.ndim) if dim != axis])
        parts = [along[i] for i in range(len(self._axes))]
        if self._entries is None or self._entries[0].device != parts[0].device:
            self._entries = [entries.to(parts[0].device) for entries in self._positions([len(part) for part in parts])]
        flat = torch.cat(parts)
        return torch.cat([flat[entries].sum(dim=1) for entries in self._entries])

    def _positions(self, lengths: list[int]) -> list[Tensor]:
        """For each group ``(units, entries)``, the places of its units' entries in all sums concatenated."""
        starts = dict(zip(self._axes, itertools.accumulate([0, *lengths]), strict=False))
        return [
            torch.cat(
                [torch.as_tensor(part.index) + starts[part.tensor, part.axis] for part in group.members if part.gate], 1
            )
            for group in self.groups
        ]

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Values of the shape that :meth:`__call__` returns, as ``(units,)`` for each group."""
        parts = values.split([group.size for group in self.groups])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}
