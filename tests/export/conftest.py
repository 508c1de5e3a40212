"""Small models cut at random from tiny and from real architectures, and a process that knows no lightning_mvp."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import create_backbone, find_groups, random_masks, shrink
from lightning_mvp.export.source import Source
from lightning_mvp.tasks.facts import TaskFacts

from ..callbacks.user import RECIPE, VIT_RECIPE

RECIPES: dict[str, dict[str, Any]] = {
    "resnet": RECIPE,
    "vit": VIT_RECIPE,
    "efficientnet_b0": {"model": "efficientnet_b0", "input_size": 32},
    "regnety_002": {"model": "regnety_002", "input_size": 32},
    "convnext_atto": {"model": "convnext_atto", "input_size": 32},
    "swin_tiny": {
        "model": "swin_tiny_patch4_window7_224",
        "arguments": {"img_size": 32, "window_size": 4, "depths": [1, 2], "num_heads": [4, 8], "embed_dim": 32},
        "input_size": 32,
    },
}
BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning_mvp", "lightning", "torch_pruning"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
import torch
torch.set_num_threads(1)
"""


def facts_of(recipe: dict[str, Any]) -> TaskFacts:
    return TaskFacts("colours", ("red", "green", "blue"), recipe["input_size"], (0.5,) * 3, (0.25,) * 3)


def make_source(kind: str) -> Source:
    """Half of the units of an architecture, with weights and statistics that are not those of a new model."""
    torch.manual_seed(0)
    recipe = RECIPES[kind]
    backbone = create_backbone(recipe)
    example = torch.randn(8, 3, recipe["input_size"], recipe["input_size"])
    backbone(example)  # batch statistics
    groups = find_groups(backbone, example, check=False)
    small = shrink(backbone, groups, random_masks(groups, 0.5, seed=0)).eval()
    with torch.no_grad():
        features = small(example).shape[1]
    return Source.from_backbone(kind, small, nn.Linear(features, 3), facts_of(recipe))


@pytest.fixture(scope="session")
def source_of() -> Callable[[str], Source]:
    """Sources by the names of `RECIPES`, made once; tests must not change them."""
    made: dict[str, Source] = {}

    def source_of(kind: str) -> Source:
        if kind not in made:
            made[kind] = make_source(kind)
        return made[kind]

    return source_of


def run_elsewhere(script: str, *arguments: str | Path, cwd: Path) -> None:
    """Run a script in a process that can import torch and timm, but not lightning_mvp."""
    command = [sys.executable, "-I", "-c", BLOCKED + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
