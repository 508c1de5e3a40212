"""One round of pruning, from scores to masks, and the pruning of a backbone in place. Needs no Trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Keeper, Masks, dead_entries, zero_entries
from lightning_mvp.pruning.criteria import CRITERIA, Candidates
from lightning_mvp.pruning.importance import Scores, normalised
from lightning_mvp.pruning.prunable import Prunable
from lightning_mvp.pruning.settings import PruningSettings


def fractions_kept(cost: CostModel, masks: Masks) -> dict[str, float]:
    """The fractions of ``units``, ``params`` and ``macs`` that masks leave."""
    full = Masks.full(masks.sizes)
    return {
        "units": 1 - masks.pruning_ratio,
        "params": cost.parameters(masks) / cost.parameters(full),
        "macs": cost.macs(masks) / cost.macs(full),
    }


class Engine:
    """Decides, round by round, which units of a backbone are kept. Its owner zeroes or cuts the others.

    Each method takes the backbone as an argument instead of keeping it, so that a callback with an engine can be
    pickled.

    Args:
        groups: the groups that are pruned, of the backbone with which pruning begins.
        cost: parameters and MACs of the same backbone for any masks.
        settings: how to prune.
        masks: the units that are there in the beginning; None for all.
        present: the groups of the backbone after it was cut by ``masks``; None if it was not cut.

    Attributes:
        origin: the groups of the backbone with which pruning began.
        groups: the groups of the backbone as it is now.
        masks: the units of ``origin`` that are left.
        importance: ``(units,)`` for each group: a unit's score, divided by its group's mean, in the last round that it
            took part in.
        round: how many rounds have been decided.
    """

    def __init__(
        self,
        groups: Groups,
        cost: CostModel,
        settings: PruningSettings,
        masks: Masks | None = None,
        present: Groups | None = None,
    ) -> None:
        self.origin, self.cost, self.settings = groups, cost, settings
        full = Masks.full(groups)
        self.masks = full if masks is None else Masks({name: masks[name] for name in full})
        self.importance: Scores = {group.name: torch.zeros(group.size) for group in groups}
        self.round = 0
        # A user's object is copied, because it may serve several runs.
        self.criterion = CRITERIA.resolve(copy.deepcopy(settings.criterion))
        self._begin(groups if present is None else present)

    def _begin(self, groups: Groups) -> None:
        """Start collecting scores anew, for a backbone with these groups."""
        self.groups = groups
        self.criterion.begin(groups)
        self._named: dict[str, nn.Parameter] = {}

    def _parameters(self, backbone: nn.Module) -> dict[str, nn.Parameter]:
        if not self._named:  # collected once in each round, because walking through all modules is slow
            self._named = dict(backbone.named_parameters())
        return self._named

    @property
    def finished(self) -> bool:
        """Whether the last round has happened."""
        return self.round == self.settings.rounds

    def observe(self, backbone: nn.Module) -> None:
        """Show the criterion the gradients of one step, before they are clipped, if a round will need them."""
        if self.criterion.uses_gradients and not self.finished:
            parameters = self._parameters(backbone)
            self.criterion.observe(parameters, {name: parameter.grad for name, parameter in parameters.items()})

    def decide(self, backbone: nn.Module, round_: int, kept_fraction: float) -> Masks:
        """Decide one round, which sets :attr:`masks`, :attr:`importance` and :attr:`round`.

        Returns:
            The masks before the round.

        Raises:
            RuntimeError: there are no scores, or they are not finite or of another shape. Then nothing has changed.
        """
        scores, before = self._scores(backbone, round_), self.masks
        self.masks = self.settings.choose(scores, before, kept_fraction, self.origin, self.cost)
        for name, score in normalised(scores, before).items():
            self.importance[name] = torch.where(before[name], score, self.importance[name]).float()
        self.round = round_
        return before

    @torch.no_grad()
    def _scores(self, backbone: nn.Module, round_: int) -> Scores:
        """Scores ``(units,)`` for each group of :attr:`origin`, 0 for units that were cut."""
        seed = self.settings.seed * 1_000_003 + round_
        candidates = Candidates(backbone, self.groups, self.origin, self.masks, seed)
        found = self.criterion.scores(candidates)
        scores = {}
        for name, mask in self.masks.items():
            score, size = found.get(name), self.groups[name].size
            if not isinstance(score, Tensor) or score.shape != (size,) or not score.isfinite().all():
                got = "none" if score is None else f"{score!r}"
                raise RuntimeError(
                    f"Expected {type(self.criterion).__name__}.scores to return a finite tensor of shape ({size},) for "
                    f"group `{name}`, but got {got}. If the weights are not finite, lower the learning rate."
                )
            scores[name] = torch.zeros(len(mask))
            scores[name][candidates.units(name)] = score.float().cpu()
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers."""
        state = self.criterion.state_dict()
        return {
            "round": self.round,
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "importance": dict(self.importance),
            # Our own criteria's state is stored beside these keys, as it always was. Others' keys might be the same.
            **(state if type(self.criterion) in CRITERIA.known.values() else {"criterion": state}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. The backbone's weights are not in it."""
        self.round = state["round"]
        self.masks = Masks(state["masks"])
        self.importance = dict(state["importance"])
        self._begin(self.groups)
        self.criterion.load_state_dict(state.get("criterion", state))


class Pruner(Engine):
    """Prunes a backbone that is being trained, in place: removed units are zeroed and stay zero, and nothing is cut.

    Args:
        prunable: the groups of the backbone that is given to each method, from
            :func:`~lightning_mvp.pruning.prunable.find_prunable`.
        example: the inputs of one forward pass.
        settings: how to prune the backbone.
    """

    def __init__(self, prunable: Prunable, example: tuple[Tensor, ...], settings: PruningSettings) -> None:
        super().__init__(prunable.groups, prunable.cost, settings)
        self.prunable = prunable
        self._inputs: list[Any] = [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in example]

    def _begin(self, groups: Groups) -> None:
        super()._begin(groups)
        self._keeper: Keeper | None = None

    def _keeper_for(self, backbone: nn.Module) -> Keeper:
        if self._keeper is None:  # masks change at rounds only
            parameters = self._parameters(backbone)
            self._dead = dead_entries(self.groups, self.masks, next(iter(parameters.values())).device)
            self._keeper = Keeper(parameters, self._dead)
        return self._keeper

    @property
    def kept(self) -> dict[str, float]:
        """The fractions of ``units``, ``params`` and ``macs`` that are left."""
        return fractions_kept(self.cost, self.masks)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Zeros of the shapes that the backbone takes in one forward pass."""
        return tuple(torch.zeros(shape, dtype=getattr(torch, str(kind))) for shape, kind in self._inputs)

    def zero_gradients(self, backbone: nn.Module) -> None:
        """Zero the gradients of removed units, so that they count in no norm and no momentum."""
        self._keeper_for(backbone).zero_gradients()

    def zero_removed(self, backbone: nn.Module) -> None:
        """Zero removed units again, since an optimizer may have moved them."""
        self._keeper_for(backbone).zero()

    def zero_optimizer_state(self, backbone: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero an optimizer's state for removed units, such as momentum, where it has the parameter's shape."""
        self._keeper_for(backbone)
        for name, parts in self._dead.items():
            parameter = self._parameters(backbone)[name]
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    zero_entries({name: value}, {name: parts})

    def prune(self, backbone: nn.Module, round_: int, kept_fraction: float) -> None:
        """Decide one round, zero the units that it removes, and start collecting scores anew.

        Raises:
            RuntimeError: as in :meth:`decide`.
        """
        self.decide(backbone, round_, kept_fraction)
        self._begin(self.groups)
        self._keeper_for(backbone)
        zero_entries(self._parameters(backbone), self._dead)

    def state_dict(self) -> dict[str, Any]:
        """The engine's state, with the shapes of the backbone's inputs, by which its groups can be found again."""
        return {**super().state_dict(), "inputs": self._inputs}
