"""Group names are the same in every process, and a person would say them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from lightning_mvp.backbones import Groups

from .families import found

ROOT = Path(__file__).parents[2]
# Two image sizes of which nothing may depend.
SIZES = {"resnet18": (32, 96), "vit_tiny_patch16_224": (32, 64), "efficientnet_b0": (32, 96)}
SIZES |= {"swin_tiny_patch4_window7_224": (56, 112)}


RESNET18 = ["layer1.residual", "layer1.0.conv1", "layer1.1.conv1"]
RESNET18 += [f"layer{stage}.{part}" for stage in (2, 3, 4) for part in ("0.conv1", "residual", "1.conv1")]
VIT_TINY = [name for i in range(12) for name in (f"blocks.{i}.attn.heads", f"blocks.{i}.mlp")]
SWIN = [
    f"layers.{stage}.blocks.{block}.{part}"
    for stage, depth in enumerate((2, 2, 6, 2))
    for block in range(depth)
    for part in ("attn.heads", "mlp")
]
EFFICIENTNET = ["conv_stem", "blocks.0.0.se.conv_reduce", "blocks.0.0.conv_pw"]
for _stage, _depth in enumerate((2, 2, 3, 3, 4), start=1):
    for _block in range(_depth):
        EFFICIENTNET += [f"blocks.{_stage}.{_block}.conv_pw", f"blocks.{_stage}.{_block}.se.conv_reduce"]
        EFFICIENTNET += [f"blocks.{_stage}.residual"] if _block == 0 else []
EFFICIENTNET += ["blocks.6.0.conv_pw", "blocks.6.0.se.conv_reduce", "blocks.6.0.conv_pwl", "conv_head"]
NAMES = {
    "resnet18": RESNET18,
    "vit_tiny_patch16_224": VIT_TINY,
    "efficientnet_b0": EFFICIENTNET,
    "swin_tiny_patch4_window7_224": SWIN,
}


def groups_of(model: str, size: int) -> tuple[nn.Module, Groups]:
    arguments = {"img_size": size} if "patch" in model else {}
    return found({"model": model, "arguments": arguments, "input_size": size})[:2]


def sizes_of(model: str, size: int) -> dict[str, int]:
    """Group → number of units, in order."""
    return groups_of(model, size)[1].sizes


@pytest.mark.parametrize("model", NAMES)
def test_names_are_those_that_files_hold(model: str) -> None:
    assert list(sizes_of(model, SIZES[model][0])) == NAMES[model]


@pytest.mark.parametrize("model", NAMES)
def test_a_name_says_where_the_units_are_and_what_they_are(model: str) -> None:
    backbone, groups = groups_of(model, SIZES[model][0])
    modules = {name for name, _ in backbone.named_modules()}
    for group in groups:
        place = group.name.removesuffix(".residual").removesuffix(".heads")
        assert place in modules, group.name
        assert group.name.endswith(".residual") == (group.kind == "residual")
        assert group.name.endswith(".heads") == (group.kind == "heads")


@pytest.mark.slow
def test_names_and_sizes_are_the_same_in_a_process_of_another_hash_seed_and_with_larger_images() -> None:
    code = (
        "import json; from tests.backbones.test_names import SIZES, sizes_of;"
        "print(json.dumps({model: list(sizes_of(model, large).items()) for model, (_, large) in SIZES.items()}))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    here = {model: [list(item) for item in sizes_of(model, small).items()] for model, (small, _) in SIZES.items()}
    assert json.loads(there.stdout) == here
