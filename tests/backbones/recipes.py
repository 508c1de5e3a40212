"""Recipes as shipped in conf/backbone, and backbones cached over the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from lightning_mvp.backbones import Groups, create_backbone, find_groups

CONF = Path(__file__).parents[2] / "conf" / "backbone"


def recipe(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(name).recipe)  # type: ignore[return-value]


@cache
def build(name: str, size: int) -> tuple[nn.Module, Groups, Tensor]:
    """A backbone that tests must not change, its groups and an example."""
    torch.manual_seed(0)
    backbone = create_backbone(recipe(name))
    example = torch.randn(1, 3, size, size)
    return backbone, find_groups(backbone, example, check=False), example
