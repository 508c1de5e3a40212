"""Magnitude and random scores of units, as pure functions of tensors.

Scores are a float32 tensor of shape ``(units,)`` for each group; units with greater scores are more important.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks

Scores = dict[str, Tensor]


def sum_by_unit(values: Tensor, axis: int, index: Tensor) -> Tensor:
    """Sum a tensor's entries over the parts of one axis that units own.

    Args:
        values: any shape, with ``values.shape[axis]`` entries along the axis.
        axis: the axis that units own parts of.
        index: int64 ``(units, span)``, the entries of the axis that each unit owns.

    Returns:
        Sums of shape ``(units,)``.

    Example:
        >>> sum_by_unit(torch.ones(4, 3), 0, torch.tensor([[0, 1], [2, 3]]))
        tensor([6., 6.])
    """
    others = [dim for dim in range(values.ndim) if dim != axis]
    along = values.sum(dim=others) if others else values
    return along[index].sum(dim=1)


def magnitude_importance(state: Mapping[str, Tensor], groups: Groups) -> Scores:
    r"""Group-wise L2 norm: :math:`I_k = \sqrt{\sum_{w \in k} w^2}` over all weights the unit owns.

    Args:
        state: the backbone's state dict.
        groups: its groups; batch-norm statistics don't count.

    Returns:
        float32 ``(units,)`` for each group.
    """
    scores = {}
    for group in groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.role != "statistic":
                squares = state[member.tensor].detach().double().cpu().square()
                total += sum_by_unit(squares, member.axis, torch.as_tensor(member.index))
        scores[group.name] = total.sqrt().float()
    return scores


def random_importance(groups: Groups, seed: int) -> Scores:
    """Uniform random scores, the control: float32 ``(units,)`` for each group, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in groups}


def normalised(scores: Mapping[str, Tensor], masks: Masks | None = None) -> Scores:
    """Divide scores by their group's mean over kept units, so that groups can be ranked together.

    Args:
        scores: ``(units,)`` for each group.
        masks: the units that are left; None for all.

    Returns:
        float64 ``(units,)`` for each group; a group whose mean is zero stays zero.

    Example:
        >>> normalised({"a": torch.tensor([1.0, 3.0])})["a"]
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    result = {}
    for name, score in scores.items():
        score = score.double()
        mean = (score if masks is None else score[masks[name]]).mean()
        result[name] = score / mean if mean > 0 else torch.zeros_like(score)
    return result
