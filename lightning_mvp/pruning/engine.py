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
    """Decides, round by round, which units of a backbone stay. Whoever owns it zeroes or cuts the others.

    The backbone is handed to each method rather than kept, so that a callback that owns an engine can be pickled.

    Args:
        groups: the groups that are pruned, of the backbone with which pruning begins.
        cost: of the same backbone and groups.
        settings: how to prune.
        masks: the units that are there in the beginning; None: all.
        present: the groups of the backbone as it is, where it was cut by ``masks``; None: ``groups``.

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
        # A user's object is copied: it may serve several runs.
        self.criterion = CRITERIA.resolve(copy.deepcopy(settings.criterion))
        self._begin(groups if present is None else present)

    def _begin(self, groups: Groups) -> None:
        """Scores start afresh, of a backbone with these groups."""
        self.groups = groups
        self.criterion.begin(groups)
        self._named: dict[str, nn.Parameter] = {}

    def _parameters(self, backbone: nn.Module) -> dict[str, nn.Parameter]:
        if not self._named:  # collected once a round, because modules are walked slowly
            self._named = dict(backbone.named_parameters())
        return self._named

    @property
    def finished(self) -> bool:
        """Whether the last round has happened."""
        return self.round == self.settings.rounds

    def observe(self, backbone: nn.Module) -> None:
        """Let the criterion look at the gradients of one step, before they are clipped, if a round will want them."""
        if self.criterion.uses_gradients and not self.finished:
            parameters = self._parameters(backbone)
            self.criterion.observe(parameters, {name: parameter.grad for name, parameter in parameters.items()})

    def decide(self, backbone: nn.Module, round_: int, kept_fraction: float) -> Masks:
        """Decide one round: sets :attr:`masks`, :attr:`importance` and :attr:`round`, and returns the masks before it.

        Raises:
            RuntimeError: there are no scores, or they are not finite or of another shape; nothing has changed then.
        """
        scores, before = self._scores(backbone, round_), self.masks
        self.masks = self.settings.choose(scores, before, kept_fraction, self.origin, self.cost)
        for name, score in normalised(scores, before).items():
            self.importance[name] = torch.where(before[name], score, self.importance[name]).float()
        self.round = round_
        return before

    @torch.no_grad()
    def _scores(self, backbone: nn.Module, round_: int) -> Scores:
        """Scores ``(units,)`` for each group of :attr:`origin`; units that were cut have none, and get 0."""
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
            # The state of our own criteria has always been here; the keys of others might be those above.
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
        example: what the backbone takes in one forward pass.
        settings: how to prune it.
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
        """Removed units get no gradient, so that they count in no norm and no momentum."""
        self._keeper_for(backbone).zero_gradients()

    def zero_removed(self, backbone: nn.Module) -> None:
        """Zero removed units: an optimizer may move what was zero."""
        self._keeper_for(backbone).zero()

    def zero_optimizer_state(self, backbone: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero what an optimizer remembers of removed units: momentum and the like, of the parameter's own shape."""
        self._keeper_for(backbone)
        for name, parts in self._dead.items():
            parameter = self._parameters(backbone)[name]
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    zero_entries({name: value}, {name: parts})

    def prune(self, backbone: nn.Module, round_: int, kept_fraction: float) -> None:
        """Decide one round and zero what it removes; scores start afresh. Errors are those of :meth:`decide`."""
        self.decide(backbone, round_, kept_fraction)
        self._begin(self.groups)
        self._keeper_for(backbone)
        zero_entries(self._parameters(backbone), self._dead)

    def state_dict(self) -> dict[str, Any]:
        """The engine's state, and the shapes of the backbone's inputs, with which its groups can be found again."""
        return {**super().state_dict(), "inputs": self._inputs}
