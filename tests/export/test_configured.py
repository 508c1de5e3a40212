"""Every backbone that ``conf/backbone`` names goes through export and is rebuilt by the loader that goes along."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_mvp.backbones import create_backbone, find_groups, random_masks, shrink
from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.source import Source
from lightning_mvp.export.standalone import load

from .conftest import facts_of

CONFIGURED = sorted(path.stem for path in Path(str(files("lightning_mvp.conf"))).glob("backbone/*.yaml"))
LARGE = {"resnet50", "deit_small"}
ANY = "regnety_002"  # what `timm` is tried with


def recipe_of(option: str) -> dict[str, Any]:
    model = [f"backbone.recipe.model={ANY}", "backbone.recipe.input_size=64"] if option == "timm" else []
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        config = compose("prune", [f"backbone={option}", *model])
    recipe = OmegaConf.to_container(config.backbone.recipe)
    assert isinstance(recipe, dict)
    return {str(key): value for key, value in recipe.items()}


@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in CONFIGURED]
)
def test_a_configured_backbone_is_exported_and_rebuilt_without_lightning_mvp(option: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(recipe_of(option))
    example = torch.randn(2, 3, backbone.recipe["input_size"], backbone.recipe["input_size"])
    backbone(example)  # batch statistics that are not those of a new model
    groups = find_groups(backbone, example[:1], check=False)
    small = shrink(backbone, groups, random_masks(groups, 0.5, seed=0)).eval()
    source = Source.from_backbone(option, small, torch.nn.Linear(small(example).shape[1], 3), facts_of(backbone.recipe))
    assert write_safetensors(source, tmp_path) == 0.0
    assert repr(load(tmp_path)[0]) == repr(source.model)
