"""The pruning of one backbone, step by step and round by round: all that needs no Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Keeper, Masks, dead_entries, zero_entries
from lightning_mvp.pruning.importance import (
    Scores,
    TaylorScores,
    magnitude_importance,
    normalised,
    random_importance,
)
from lightning_mvp.pruning.settings import PruningSettings


class Contract(NamedTuple):
    """The groups that a zoo's entries are about.

    ``zoo``: its folder, for messages. ``sizes``: group → units.
    """

    zoo: str
    sizes: Mapping[str, int]


def require_plain(backbone: nn.Module) -> None:
    """Refuse weights that are computed from others: zeroing and cutting would not reach what they are made of.

    Raises:
        ValueError: a module is under torch.nn.utils.prune or a parametrization, named.
    """
    for name, module in backbone.named_modules():
        if parametrize.is_parametrized(module):
            remedy = "torch.nn.utils.parametrize.remove_parametrizations"
        elif any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values()):
            remedy = "torch.nn.utils.prune.remove"
        else:
            continue
        raise ValueError(
            f"Expected the backbone's weights to be plain parameters, but those of `{name}` are computed, by "
            f"torch.nn.utils.prune or a parametrization. Make them plain first: {remedy}."
        )


def require_trainable(backbone: nn.Module, groups: Groups) -> None:
    """Refuse units that training won't move: they can't be scored.

    Raises:
        ValueError: a unit's gate is frozen.
    """
    parameters = dict(backbone.named_parameters())
    for group in groups:
        for member in group.members:
            if member.gate and not parameters[member.tensor].requires_grad:
                raise ValueError(
                    f"Expected the units of group `{group.name}` to be trainable, but `{member.tensor}` is "
                    "frozen. Unfreeze the backbone before fit: units that don't learn can't be scored."
                )


def of_all_groups(groups: Groups, masks: Masks, importance: Scores) -> tuple[Masks, Scores]:
    """Masks and importance of all of a backbone's groups: one that was left whole keeps every unit, all alike.

    Args:
        groups: all of them.
        masks: of those that were pruned.
        importance: ``(units,)`` for each of those.
    """
    whole = Masks.full(groups)
    every = Masks({name: masks.get(name, mask) for name, mask in whole.items()})
    return every, {name: importance.get(name, mask.float()) for name, mask in whole.items()}


def fractions_kept(cost: CostModel, masks: Masks) -> dict[str, float]:
    """The fractions of ``units``, ``params`` and ``macs`` that masks leave."""
    full = Masks.full(masks.sizes)
    return {
        "units": 1 - masks.pruning_ratio,
        "params": cost.parameters(masks) / cost.parameters(full),
        "macs": cost.macs(masks) / cost.macs(full),
    }


class Pruner:
    """Groups, scores and masks of a backbone that is being trained; removed units are zeroed, not cut.

    The backbone is handed to each method rather than kept, so that the callback that owns a Pruner can be pickled.

    Args:
        backbone: maps images to features; not changed by the constructor.
        example: what it takes in one forward pass.
        settings: how to prune it.
        keep_features: leave the group that is the backbone's output whole, because nobody knows who reads it.
        contract: the groups of the zoo that the result is for, which are the same for all its entries.

    Raises:
        ValueError: a group that the zoo lists is missing, nothing in the backbone can be pruned, a unit is frozen, or
            a weight is computed from others.
    """

    def __init__(
        self,
        backbone: nn.Module,
        example: tuple[Tensor, ...],
        settings: PruningSettings,
        keep_features: bool,
        contract: Contract | None = None,
    ) -> None:
        require_plain(backbone)
        self.settings = settings
        self._inputs: list[Any] = [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in example]
        self.all_groups = find_groups(backbone, example)
        # Groups of other sizes are of another backbone, which the zoo refuses by name when it is opened.
        if contract is not None and contract.sizes.items() <= {**contract.sizes, **self.all_groups.sizes}.items():
            self.all_groups = self.all_groups.listed(contract.sizes, contract.zoo)
        features = [group.name for group in self.all_groups.feature_groups]
        if features and keep_features:
            rank_zero_warn(
                f"Group `{features[0]}` is the backbone's output and stays whole, because `head` is not given "
                "and nobody knows who reads it. Name the linear layer that follows: MVPCallback(head=...)."
            )
        else:
            features = []
        # Chosen among all groups: a pattern may name those that stay whole anyway.
        self.groups = self.all_groups.select(settings.include, [*(settings.exclude or ()), *features])
        require_trainable(backbone, self.groups)
        self.cost = CostModel(backbone, self.groups, example)
        # A ratio out of reach is refused now, not in the round that can't reach it.
        full = Masks.full(self.groups)
        scores = {name: mask.float() for name, mask in full.items()}
        settings.choose(scores, full, 1 - settings.pruning_ratio, self.groups, self.cost)
        self.scores = TaylorScores(self.groups)
        self.importance: Scores = {group.name: torch.zeros(group.size) for group in self.groups}
        self.round = 0
        self._set_masks(Masks.full(self.groups))

    def _set_masks(self, masks: Masks) -> None:
        self.masks, self.kept = masks, fractions_kept(self.cost, masks)
        self._keeper: Keeper | None = None

    def _keeper_of(self, backbone: nn.Module) -> Keeper:
        if self._keeper is None:  # changes at rounds only
            self._parameters = dict(backbone.named_parameters())
            device = next(iter(self._parameters.values())).device
            self._dead = dead_entries(self.groups, self.masks, device)
            self._keeper = Keeper(self._parameters, self._dead)
        return self._keeper

    @property
    def finished(self) -> bool:
        """Whether the last round has happened."""
        return self.round == self.settings.rounds

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Zeros of the shapes that the backbone takes in one forward pass."""
        return tuple(torch.zeros(shape, dtype=getattr(torch, str(kind))) for shape, kind in self._inputs)

    def observe(self, backbone: nn.Module) -> None:
        """Take scores of one step from its gradients, where the next round will want them."""
        if self.settings.criterion == "taylor" and not self.finished:
            self._keeper_of(backbone)
            gradients = {name: self._parameters[name].grad for name in self.scores.gates.tensors}
            self.scores.update(self._parameters, gradients)

    def zero_gradients(self, backbone: nn.Module) -> None:
        """Removed units get no gradient, so that they count in no norm and no momentum."""
        self._keeper_of(backbone).zero_gradients()

    def zero_removed(self, backbone: nn.Module) -> None:
        """Zero removed units: an optimizer may move what was zero."""
        self._keeper_of(backbone).zero()

    def zero_optimizer_state(self, backbone: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero what an optimizer remembers of removed units: momentum and the like, of the parameter's own shape."""
        self._keeper_of(backbone)
        for name, parts in self._dead.items():
            parameter = self._parameters[name]
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    zero_entries({name: value}, {name: parts})

    def can_score(self) -> bool:
        """Whether a round could be decided now: for Taylor scores, whether a step with finite gradients was seen.

        Waits for the device.
        """
        scores = self.scores
        return self.settings.criterion != "taylor" or bool(scores.count) or scores.without_gradient is not None

    def prune(self, backbone: nn.Module, round_: int, kept_fraction: float) -> None:
        """Decide one round and zero what it removes; scores start afresh.

        Raises:
            RuntimeError: there are no scores, or they are not finite; nothing has changed then.
        """
        scores = self._scores_of(backbone, round_)
        masks = self.settings.choose(scores, self.masks, kept_fraction, self.groups, self.cost)
        for name, score in normalised(scores, self.masks).items():
            # A unit keeps the score it had in the last round that it took part in.
            self.importance[name] = torch.where(self.masks[name], score, self.importance[name]).float()
        self._set_masks(masks)
        self.round = round_
        self.scores.reset()
        self._keeper_of(backbone)
        zero_entries(self._parameters, self._dead)

    def _scores_of(self, backbone: nn.Module, round_: int) -> Scores:
        if self.settings.criterion == "taylor":
            return self.scores.means()
        if self.settings.criterion == "magnitude":
            # What reads a removed unit is not zeroed, but counts for nobody: in a cut model it would be gone.
            state = {name: tensor.detach().clone() for name, tensor in backbone.state_dict().items()}
            device = next(iter(state.values())).device
            zero_entries(state, dead_entries(self.groups, self.masks, device, roles=("consumer",)))
            return magnitude_importance(state, self.groups)
        return random_importance(self.groups, self.settings.seed * 1_000_003 + round_)

    def for_zoo(self) -> tuple[Masks, Scores]:
        """Masks and importance of all the backbone's groups: one that was left whole keeps every unit, all alike."""
        return of_all_groups(self.all_groups, self.masks, self.importance)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers."""
        return {
            "round": self.round,
            "inputs": self._inputs,  # for whoever finds the groups again
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "importance": dict(self.importance),
            **self.scores.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the backbone's weights are restored by whoever saved them."""
        self.round = state["round"]
        self._set_masks(Masks(state["masks"]))
        self.importance = dict(state["importance"])
        self.scores.load_state_dict(state)
