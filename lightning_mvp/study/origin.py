"""The backbone that models are pruned from: weights on disk, with its groups and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.importance import Scores, magnitude_importance


class Origin:
    """A backbone that models are pruned from: θ⁰, or the zoo's mildly pruned parent.

    Args:
        recipe: of the backbone.
        weights: its safetensors file.
        image_shape: ``(C, H, W)``.
        include: patterns of groups to prune, as in :class:`~lightning_mvp.callbacks.mvp.MVPCallback`; None for all.
        exclude: patterns of groups to leave whole, as in :class:`~lightning_mvp.callbacks.mvp.MVPCallback`.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        weights: Path,
        image_shape: tuple[int, ...],
        include: Sequence[str] | None,
        exclude: Sequence[str] | None,
    ) -> None:
        self.recipe, self.weights, self.image_shape = dict(recipe), weights, image_shape
        self.include, self.exclude = include, exclude

    def build(self) -> nn.Module:
        """A fresh copy of the backbone."""
        return create_backbone(self.recipe, weights=self.weights)

    @property
    def example(self) -> Tensor:
        return torch.zeros(2, *self.image_shape)

    @cached_property
    def groups(self) -> Groups:
        return find_groups(self.build(), self.example)

    @cached_property
    def pruned(self) -> Groups:
        """The groups that lose units; the others stay whole."""
        return self.groups.select(self.include, self.exclude)

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self.build(), self.groups, self.example)

    def magnitudes(self) -> Scores:
        """The L2 norm of each unit's weights."""
        return magnitude_importance(self.build().state_dict(), self.groups)

    def measure(self, masks: Masks | None) -> dict[str, Any]:
        """Widths, parameters and MACs of what masks leave; None and groups without a mask stay whole."""
        masks = Masks.full(self.groups) if masks is None else masks
        return {
            "widths": {**self.groups.sizes, **masks.kept},
            "parameters": self.cost.parameters(masks),
            "macs": self.cost.macs(masks),
        }
