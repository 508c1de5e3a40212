"""Torch-Pruning's own pruner, for comparisons with ours; nothing else in the package cuts with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch_pruning as tp
from torch import Tensor, nn


class RoundPruner(Protocol):
    """What prunes one more round at each call, in place."""

    def step(self) -> object: ...


def reference_pruner(
    network: nn.Module, example: Tensor, kept_fractions: Sequence[float], whole: Sequence[nn.Module]
) -> RoundPruner:
    """``tp.pruner.BasePruner`` with ``GroupTaylorImportance``, every layer by the same ratio, as it is documented.

    Args:
        network: pruned in place by each ``step()``, from the gradients that its parameters have then.
        example: a batch of images.
        kept_fractions: of the units, after each round.
        whole: layers whose outputs stay.
    """

    def ratios(_: float, rounds: int) -> list[float]:
        return [0.0, *(1 - fraction for fraction in kept_fractions)]

    return tp.pruner.BasePruner(
        network,
        example,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=1 - kept_fractions[-1],
        iterative_steps=len(kept_fractions),
        iterative_pruning_ratio_scheduler=ratios,
        ignored_layers=list(whole),
    )
