"""Torch-Pruning's own pruner, which a study compares with ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch_pruning as tp
from torch import Tensor, nn

from lightning_mvp.backbones.attention import attention_modules, set_heads


class RoundPruner(Protocol):
    """Prunes a network in place, one round further with each ``step()``."""

    def step(self) -> object: ...


def reference_pruner(
    network: nn.Module, example: Tensor, kept_fractions: Sequence[float], whole: Sequence[nn.Module]
) -> RoundPruner:
    """``tp.pruner.BasePruner`` with ``GroupTaylorImportance`` and one ratio for all layers, as it is documented.

    In a transformer it removes whole heads and hidden units and keeps the residual stream, as our own pruning does.

    Args:
        network: pruned in place by each ``step()``, from the gradients that its parameters have then.
        example: a batch of images.
        kept_fractions: the fraction of the units that is left after each round.
        whole: layers that keep all outputs.
    """

    def ratios(_: float, rounds: int) -> list[float]:
        return [0.0, *(1 - fraction for fraction in kept_fractions)]

    attention = list(attention_modules(network)[0].values())
    residual = _residual_writers(network) if attention else []
    pruner = tp.pruner.BasePruner(
        network,
        example,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=1 - kept_fractions[-1],
        iterative_steps=len(kept_fractions),
        iterative_pruning_ratio_scheduler=ratios,
        ignored_layers=[*whole, *residual],
        num_heads={each.qkv: each.num_heads for each in attention},
        prune_num_heads=bool(attention),
        prune_head_dims=not attention,
        head_pruning_ratio=1 - kept_fractions[-1],
    )
    return WithHeads(pruner, attention, kept_fractions) if attention else pruner


def _residual_writers(network: nn.Module) -> list[nn.Module]:
    """The layers of a timm transformer whose outputs are added to its residual stream."""
    writers = []
    for name, layer in network.named_modules():
        if name.endswith(("attn.proj", "mlp.fc2")):
            writers.append(layer)
        if name.endswith("patch_embed.proj"):
            writers.append([part for part in layer.modules() if isinstance(part, nn.Conv2d)][-1])
    return writers


class WithHeads:
    """Torch-Pruning's pruner for a transformer, with the right number of heads after each round.

    Torch-Pruning 1.6 applies each round's ratio to the heads that are *left*, as if it were a ratio of all heads, so
    that soon none are left. Here it is given the ratios that lead to the right numbers.

    Args:
        pruner: Torch-Pruning's, of the network.
        attention: the network's attention modules, all with the same number of heads.
        kept_fractions: the fraction of the heads that is left after each round.
    """

    def __init__(self, pruner: Any, attention: Sequence[Any], kept_fractions: Sequence[float]) -> None:
        self.pruner, self.attention = pruner, attention
        heads = [attention[0].num_heads]
        heads += [max(1, int(fraction * heads[0] + 0.5)) for fraction in kept_fractions]
        gone = [(before - after) / before for before, after in pairwise(heads)]
        # Torch-Pruning rounds the number of heads to remove up, so that a rounding error in the ratio would remove one
        # more.
        pruner.per_step_head_pruning_ratio = [0.0, *(max(0.0, ratio - 1e-6) for ratio in gone)]

    def step(self) -> None:
        self.pruner.step()
        for each in self.attention:
            set_heads(each, self.pruner.num_heads[each.qkv])
