"""Small members of the families that people use, and the coverage benchmark's own models."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones import Groups, create_backbone, find_groups


def _script(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


coverage_models, coverage_tables, coverage = map(_script, ("coverage_models", "coverage_tables", "coverage"))

SHALLOW = {"layers": [1, 1, 1, 1]}
# Each has every kind of block of its family, and few of them.
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"arguments": SHALLOW, "input_size": 32},
    "resnet50": {"arguments": SHALLOW, "input_size": 32},
    "resnext50_32x4d": {"arguments": SHALLOW, "input_size": 32},
    "seresnet18": {"arguments": SHALLOW, "input_size": 32},
    "legacy_seresnet18": {"arguments": SHALLOW, "input_size": 64},
    "mobilenetv2_035": {"input_size": 32},
    "mobilenetv3_small_050": {"input_size": 32},
    "efficientnet_b0": {"input_size": 32},
    "tf_efficientnet_lite0": {"input_size": 32},
    "regnety_002": {"input_size": 32},
    "densenet121": {"arguments": {"block_config": [2, 2, 2, 2]}, "input_size": 64},
    "vgg11_bn": {"arguments": {"mlp_ratio": 1 / 64}, "input_size": 32},
    "convnext_atto": {"arguments": {"depths": [1, 1, 2, 1]}, "input_size": 64},
    "vit_tiny_patch16_224": {"arguments": {"depth": 2, "img_size": 32}, "input_size": 32},
    "deit_tiny_distilled_patch16_224": {"arguments": {"depth": 2, "img_size": 32}, "input_size": 32},
    "deit3_small_patch16_224": {"arguments": {"depth": 2, "img_size": 32}, "input_size": 32},
    "vit_small_patch14_dinov2": {"arguments": {"depth": 2, "img_size": 28}, "input_size": 28},
    "swin_tiny_patch4_window7_224": {
        "arguments": {"depths": [2, 2], "num_heads": [3, 6], "img_size": 56},
        "input_size": 56,
    },
    "mixer_s32_224": {"arguments": {"img_size": 64}, "input_size": 64},
    "resmlp_12_224": {"arguments": {"img_size": 64}, "input_size": 64},
}


def small_recipe(model: str, **arguments: Any) -> dict[str, Any]:
    """The recipe of the small member, with further arguments."""
    own = SMALL[model]
    return {"model": model, **own, "arguments": {**own.get("arguments", {}), **arguments}}


@cache
def build_small(model: str) -> tuple[nn.Module, Groups, Tensor]:
    """A small member that tests must not change, its groups and an example."""
    return found(small_recipe(model))


@cache
def build_listed(model: str) -> tuple[nn.Module, Groups, Tensor]:
    """A model of the coverage table at full size, its groups and an example."""
    return found(coverage_models.recipe_of_model(model))


def found(recipe: dict[str, Any]) -> tuple[nn.Module, Groups, Tensor]:
    """What a recipe builds, its groups and an example."""
    torch.manual_seed(0)
    backbone = create_backbone(recipe)
    size = recipe["input_size"]
    example = torch.randn(1, 3, size, size)
    return backbone, find_groups(backbone, example, check=False), example
