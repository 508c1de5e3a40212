"""How much each unit matters: Taylor, magnitude and random scores, as pure functions of tensors.

A score is a float32 tensor of shape ``(units,)`` for each group; more is more important.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones.groups import Groups, UnitGroup
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.gates import GateGradients

Scores = dict[str, Tensor]


def sum_by_unit(values: Tensor, axis: int, index: Tensor) -> Tensor:
    """Sum a tensor's entries over what each unit owns of one axis.

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


class TaylorScores:
    r"""Running mean over steps of the squared gate gradients, :math:`I_k = \frac1n \sum_{s=1}^n (\partial L/\partial
    z_k)_s^2` (Molchanov et al. 2019, equation 8 with gates; the derivatives are :class:`GateGradients`).

    A step whose gradients are not all finite is left out; the device is never waited for.

    Args:
        groups: the backbone's groups of units.

    Example:
        >>> import numpy as np
        >>> from lightning_mvp.backbones.groups import Groups, Member, UnitGroup
        >>> member = Member("weight", 0, np.array([[0], [1]]), "norm", True)
        >>> scores = TaylorScores([UnitGroup("bn", "conv", 2, (member,), None)])
        >>> scores.update({"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 0.5])})
        >>> scores.means()["bn"]
        tensor([9., 1.])
    """

    def __init__(self, groups: Groups | Iterable[UnitGroup]) -> None:
        self.gates = GateGradients(groups)
        self.reset()

    def reset(self) -> None:
        """Forget all steps; each round scores afresh."""
        self._total: Tensor | None = None
        self.count: Tensor = torch.zeros(())
        self.without_gradient: str | None = None

    def update(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        """Add one step's gradients, already averaged over ranks and unscaled; one that lacks some is left out."""
        missing = [name for name in self.gates.tensors if gradients.get(name) is None]
        if missing:
            self.without_gradient = missing[0]
            return
        squares = self.gates(parameters, gradients).square()
        # No host sync: whether the step counts is decided where the gradients are.
        finite = torch.isfinite(squares).all()
        squares = torch.where(finite, squares, 0.0)
        self._total = squares if self._total is None else self._total.to(squares.device) + squares
        self.count = self.count.to(finite.device) + finite

    @property
    def sums(self) -> Scores:
        """Sums over the steps that counted, ``(units,)`` for each group; empty before the first step."""
        return {} if self._total is None else self.gates.split(self._total)

    def means(self) -> Scores:
        """Scores of shape ``(units,)`` for each group, on the CPU.

        Raises:
            RuntimeError: no step with all its gradients, and finite ones, was seen.
        """
        if self.count.item() == 0:
            why = "Look for inf or NaN in the loss."
            if self.without_gradient is not None:
                why = (
                    f"`{self.without_gradient}` got no gradient: let the loss depend on the whole backbone. Where "
                    "training_step leaves batches out by returning None, make rounds longer than such gaps."
                )
            raise RuntimeError(
                "No step with finite gradients was seen since the last pruning round, so there are no Taylor scores. "
                + why
            )
        return {name: (total / self.count).float().cpu() for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Sums and number of steps, on the CPU."""
        return {"sums": {name: value.cpu().clone() for name, value in self.sums.items()}, "count": float(self.count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.reset()
        if state["sums"]:
            self._total = torch.cat([state["sums"][group.name] for group in self.gates.groups])
        self.count = torch.tensor(float(state["count"]))


def taylor_importance(
    backbone: nn.Module,
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    groups: Groups,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Scores:
    """Taylor scores of a model as it stands, without training it: float32 ``(units,)`` for each group.

    The arguments are those of :func:`taylor_scores`.
    """
    return taylor_scores(backbone, head, batches, groups, loss).means()


def taylor_scores(
    backbone: nn.Module,
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    groups: Groups,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> TaylorScores:
    """Sums for the Taylor scores of a model as it stands: one backward pass for each batch, and no step.

    The module's gradients are cleared; batch-norm statistics and the training flag stay as they were.

    Args:
        backbone: maps images to features.
        head: maps features to what ``loss`` takes.
        batches: pairs of images and labels, which are brought to the backbone's device.
        groups: the backbone's groups.
        loss: of logits and labels, averaged over the batch.

    Returns:
        The sums; ``.means()`` are the scores.
    """
    parameters = dict(backbone.named_parameters())
    scores = TaylorScores(groups)
    training = backbone.training
    # In eval mode the running statistics are used and kept; the scores are of the network that would be deployed.
    backbone.eval()
    device = next(backbone.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        gradients = torch.autograd.grad(
            loss(head(backbone(images)), labels), list(parameters.values()), allow_unused=True
        )
        scores.update(parameters, dict(zip(parameters, gradients, strict=True)))
    backbone.train(training)
    return scores


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
    """Uniform random scores, the control: float32 ``(units,)`` for each group, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in groups}


def normalised(scores: Mapping[str, Tensor], masks: Masks | None = None) -> Scores:
    """Divide scores by their group's mean over kept units, so that groups can be ranked together.

    Args:
        scores: ``(units,)`` for each group.
        masks: the units still there; None means all.

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
