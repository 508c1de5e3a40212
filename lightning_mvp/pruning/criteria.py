"""The criteria by which units are chosen: Taylor, magnitude and random scores, and the base class for one's own."""

# ruff: noqa: B027  # the methods of Criterion that do nothing are for subclasses that need them

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_mvp.backbones.groups import Groups, UnitGroup
from lightning_mvp.backbones.masks import Masks, dead_entries, zero_entries
from lightning_mvp.extensions import Choices
from lightning_mvp.pruning.gates import GateGradients
from lightning_mvp.pruning.importance import Scores, magnitude_importance, random_importance


@dataclass(frozen=True)
class Candidates:
    """The units among which one round of pruning chooses, and the backbone that they are in.

    Args:
        backbone: the backbone as it is now. In a Trainer removed units are zero in it; where pruning cuts between
            rounds they are gone.
        groups: the groups of that backbone.
        origin: the groups of the backbone with which pruning began; the same object where removed units are zeroed.
        masks: the units of ``origin`` that are left.
        seed: a different number in every round, for scores that are drawn at random.
    """

    backbone: nn.Module
    groups: Groups
    origin: Groups
    masks: Masks
    seed: int

    def weights(self) -> dict[str, Tensor]:
        """The backbone's state dict, in which every entry that belongs to a removed unit is zero or gone.

        Where removed units are zeroed, the weights of the next layer that read them are not zero in the backbone, so
        that they would count for other units. In a backbone that was cut they do not exist.
        """
        state = {name: tensor.detach() for name, tensor in self.backbone.state_dict().items()}
        if self.groups is self.origin:
            dead = dead_entries(self.groups, self.masks, next(iter(state.values())).device, roles=("consumer",))
            state |= {name: state[name].clone() for name in dead if name in state}
            zero_entries(state, dead)
        return state

    def units(self, group: str) -> Tensor:
        """The number that each unit of the backbone had when pruning began."""
        mask = self.masks[group]
        return torch.arange(len(mask)) if self.groups is self.origin else mask.nonzero()[:, 0]


class Criterion(ABC):
    """Scores the units of a backbone; those with the lowest scores are removed.

    A criterion of your own is a subclass with :meth:`scores`. Override :meth:`observe` if it needs the gradients of
    training steps, and then :meth:`begin`, :meth:`ready` and the state, too. Pass an object of it as ``criterion=``, or
    name it in a configuration: ``pruning.criterion={_target_: package.Class, argument: 2}``. Keep each argument of
    ``__init__`` in an attribute of the same name, because zoo entries and checkpoints store them.

    Every fit, and every rank, works with a copy of the object, and all ranks must come to the same scores.

    Example:
        >>> class FirstUnits(Criterion):
        ...     def scores(self, candidates: Candidates) -> Scores:
        ...         return {group.name: torch.arange(group.size, 0, -1.0) for group in candidates.groups}
        >>> from lightning_mvp import MVPCallback
        >>> type(MVPCallback(criterion=FirstUnits()).settings.criterion).__name__
        'FirstUnits'
    """

    def begin(self, groups: Groups) -> None:
        """Forget what was observed: called before the first step and after every round.

        Args:
            groups: those of the backbone as it is from now on.
        """

    def observe(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        """Look at the gradients of one training step, before they are clipped.

        Args:
            parameters: the backbone's parameters by name.
            gradients: their gradients by the same names, averaged over ranks and unscaled; None where there is none.
        """

    def ready(self) -> bool:
        """Whether units can be scored now; a round waits for the first step after which they can."""
        return True

    @abstractmethod
    def scores(self, candidates: Candidates) -> Scores:
        """How much each unit matters: a finite tensor ``(units,)`` for each of ``candidates.groups``, by its name."""

    def state_dict(self) -> dict[str, Any]:
        """What was observed since :meth:`begin`, for a checkpoint: tensors and plain containers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; called after :meth:`begin`."""

    @property
    def uses_gradients(self) -> bool:
        """Whether the class has an :meth:`observe` of its own."""
        return type(self).observe is not Criterion.observe


class Taylor(Criterion):
    r"""Taylor scores: squares of :class:`~lightning_mvp.pruning.gates.GateGradients`, averaged over steps.

    :math:`I_k = \frac{1}{n} \sum_{\mathrm{steps}} (\partial L / \partial z_k)^2`

    A step whose gradients are not all finite is left out. Observing a step never waits for a GPU.

    Example:
        >>> import numpy as np
        >>> from lightning_mvp.backbones.groups import Member
        >>> member = Member("weight", 0, np.array([[0], [1]]), "norm", True)
        >>> taylor = Taylor()
        >>> taylor.begin([UnitGroup("bn", "conv", 2, (member,), None)])
        >>> taylor.observe({"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 0.5])})
        >>> taylor.scores()["bn"]
        tensor([9., 1.])
    """

    @override
    def begin(self, groups: Groups | Iterable[UnitGroup]) -> None:
        self._gates = GateGradients(groups)
        self._total: Tensor | None = None
        self.count: Tensor = torch.zeros(())
        self.without_gradient: str | None = None

    @override
    def observe(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        missing = [name for name in self._gates.tensors if gradients.get(name) is None]
        if missing:
            self.without_gradient = missing[0]
            return
        squares = self._gates(parameters, gradients).square()
        # Whether the step counts is decided on the gradients' device, so that nothing waits for a GPU.
        finite = torch.isfinite(squares).all()
        squares = torch.where(finite, squares, 0.0)
        self._total = squares if self._total is None else self._total.to(squares.device) + squares
        self.count = self.count.to(finite.device) + finite

    @property
    def sums(self) -> Scores:
        """Sums over the steps that counted, ``(units,)`` for each group; empty before the first step."""
        return {} if self._total is None else self._gates.split(self._total)

    @override
    def ready(self) -> bool:
        """Whether a step with finite gradients was seen, or one without a gradient, for which :meth:`scores` raises."""
        return bool(self.count) or self.without_gradient is not None

    @override
    def scores(self, candidates: Candidates | None = None) -> Scores:
        """Float32 scores on the CPU.

        Raises:
            RuntimeError: no step was seen in which all gradients were there and finite.
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

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: value.cpu().clone() for name, value in self.sums.items()}, "count": float(self.count)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["sums"]:
            self._total = torch.cat([state["sums"][group.name] for group in self._gates.groups])
        self.count = torch.tensor(float(state["count"]))


class Magnitude(Criterion):
    """Group-wise L2 norm: :func:`~lightning_mvp.pruning.importance.magnitude_importance`."""

    @override
    def scores(self, candidates: Candidates) -> Scores:
        return magnitude_importance(candidates.weights(), candidates.groups)


class Random(Criterion):
    """Uniform random scores, the control. They are the same whether removed units are zeroed or cut."""

    @override
    def scores(self, candidates: Candidates) -> Scores:
        drawn = random_importance(candidates.origin, candidates.seed)
        return {name: score[candidates.units(name)] for name, score in drawn.items()}


CRITERIA: Choices[Criterion] = Choices(
    "criterion",
    Criterion,  # type: ignore[type-abstract]
    {"taylor": Taylor, "magnitude": Magnitude, "random": Random},
)


def observe_batches(
    criterion: Criterion,
    backbone: nn.Module,
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Show a criterion the gradients of cross-entropy, one backward pass for each batch, without a step.

    Gradients of the module are neither read nor written; batch-norm statistics and the training flag stay as they were.

    Args:
        criterion: observes each batch; its ``begin`` must have been called.
        backbone: maps images to features.
        head: maps features to logits.
        batches: pairs of images and labels, which are brought to the backbone's device.
    """
    parameters, training = dict(backbone.named_parameters()), backbone.training
    # In eval mode batch norms use their running statistics, as the network will when it is deployed.
    backbone.eval()
    device = next(backbone.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        gradients = torch.autograd.grad(
            F.cross_entropy(head(backbone(images)), labels), list(parameters.values()), allow_unused=True
        )
        criterion.observe(parameters, dict(zip(parameters, gradients, strict=True)))
    backbone.train(training)


def taylor_importance(
    backbone: nn.Module, head: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], groups: Groups
) -> Scores:
    """Taylor scores of a model without training it: float32 ``(units,)`` for each group.

    Args:
        backbone: maps images to features.
        head: maps features to logits.
        batches: pairs of images and labels; the loss is their cross-entropy.
        groups: the backbone's groups.
    """
    taylor = Taylor()
    taylor.begin(groups)
    observe_batches(taylor, backbone, head, batches)
    return taylor.scores()
