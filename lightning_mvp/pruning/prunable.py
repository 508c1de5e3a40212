"""The groups of a backbone that will be pruned, and refusals of what can't be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.importance import Scores
from lightning_mvp.pruning.settings import PruningSettings


class Contract(NamedTuple):
    """The groups that all entries of a zoo must have.

    Attributes:
        zoo: the zoo's folder, for messages.
        sizes: the number of units of each group.
    """

    zoo: str
    sizes: Mapping[str, int]


class Prunable(NamedTuple):
    """The groups of a backbone that are pruned.

    Attributes:
        every: all groups that were found, or that the zoo lists.
        groups: the groups that are pruned.
        cost: parameters and MACs of the backbone for any masks of ``groups``.
        whole: the groups that are not pruned, each with the reason.
        without_units: how many of the backbone's layers have no units that can be removed.
    """

    every: Groups
    groups: Groups
    cost: CostModel
    whole: Mapping[str, str]
    without_units: int

    def of_all_groups(self, masks: Masks, importance: Scores) -> tuple[Masks, Scores]:
        """Masks and importance of all groups: in one that is not pruned every unit is kept, with importance 1.

        Args:
            masks: of the groups that were pruned.
            importance: ``(units,)`` for each of those.
        """
        whole = Masks.full(self.every)
        kept = Masks({name: masks.get(name, mask) for name, mask in whole.items()})
        return kept, {name: importance.get(name, mask.float()) for name, mask in whole.items()}


def find_prunable(
    backbone: nn.Module,
    example: tuple[Tensor, ...],
    settings: PruningSettings,
    *,
    keep_features: bool = False,
    contract: Contract | None = None,
) -> Prunable:
    """Find the groups that will be pruned, and refuse what can't be pruned so. The backbone is not changed.

    Args:
        backbone: maps images to features.
        example: the inputs of one forward pass.
        settings: how to prune it.
        keep_features: whether the group that is the backbone's output stays whole, as it must where the layer that
            reads it is not known.
        contract: the groups of the zoo that the result is for, which are the same for all its entries.

    Raises:
        ValueError: a group that the zoo lists is missing, nothing in the backbone can be pruned, a unit is frozen, a
            weight is computed from others, or the pruning ratio is out of reach.
    """
    require_plain(backbone)
    found = every = find_groups(backbone, example)
    # Groups of other sizes are of another backbone; the zoo refuses that by name when it is opened.
    if contract is not None and contract.sizes.items() <= {**contract.sizes, **every.sizes}.items():
        every = every.listed(contract.sizes, contract.zoo)
    features = [group.name for group in every.feature_groups] if keep_features else []
    if features:
        rank_zero_warn(
            f"Group `{features[0]}` is the backbone's output and stays whole, because `head` is not given "
            "and nobody knows who reads it. Name the linear layer that follows: MVPCallback(head=...)."
        )
    # Patterns are matched with all groups, since they may name groups that stay whole anyway.
    groups = every.select(settings.include, [*(settings.exclude or ()), *features])
    require_trainable(backbone, groups)
    cost, full = CostModel(backbone, groups, example), Masks.full(groups)
    # A ratio that is out of reach is refused now, and not in the round that can't reach it.
    scores = {name: mask.float() for name, mask in full.items()}
    settings.choose(scores, full, 1 - settings.pruning_ratio, groups, cost)
    why = {name: "not in the zoo" for name in found.names if name not in every}
    for name in every.names:
        if name not in groups:
            why[name] = "the backbone's output, no `head`" if name in features else _left_out_by(name, found, settings)
    return Prunable(every, groups, cost, why, len(found.skipped))


def _left_out_by(name: str, found: Groups, settings: PruningSettings) -> str:
    """Which setting leaves a group whole."""
    included = settings.include is None or name in found.select(settings.include)
    return "`exclude`" if included else "not in `include`"


def require_plain(backbone: nn.Module) -> None:
    """Refuse weights that are computed from other parameters, which zeroing and cutting would not change.

    Raises:
        ValueError: a module, which is named, is under torch.nn.utils.prune or a parametrization.
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
    """Refuse frozen units, which can't be scored.

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
