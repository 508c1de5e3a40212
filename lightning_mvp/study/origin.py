"""Where models begin: a backbone with weights on disk, its groups and its cost, each found once in a process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Masks


class Origin:
    """A backbone that models are pruned from: θ⁰, or the zoo's mildly pruned parent.

    Args:
        recipe: of the backbone.
        weights: its safetensors file.
        image_shape: ``(C, H, W)``.
    """

    def __init__(self, recipe: Mapping[str, Any], weights: Path, image_shape: tuple[int, ...]) -> None:
        self.recipe, self.weights, self.image_shape = dict(recipe), weights, image_shape

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
    def cost(self) -> CostModel:
        return CostModel(self.build(), self.groups, self.example)

    def size_of(self, masks: Masks | None) -> dict[str, Any]:
        """Widths, parameters and MACs of what masks leave of it; None leaves it whole."""
        masks = Masks.full(self.groups) if masks is None else masks
        return {"widths": dict(masks.kept), "parameters": self.cost.parameters(masks), "macs": self.cost.macs(masks)}
