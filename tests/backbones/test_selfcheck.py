from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_mvp.backbones import Groups, Member, check_exact, find_groups, random_masks

from .recipes import build

BACKBONES = [("resnet18", 64), ("resnet50", 64), ("resnet_mini", 32), ("vit_mini", 32), ("vit_tiny", 224)]


@pytest.mark.parametrize(("name", "size"), BACKBONES)
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_zeroed_and_cut_backbones_agree(name: str, size: int, ratio: float):
    backbone, groups, example = build(name, size)
    assert check_exact(backbone, groups, random_masks(groups, ratio, seed=3), example) <= 1e-9


def plant(groups: Groups, group_name: str, tensor: str, change) -> Groups:
    """The same groups with one tensor's index map changed."""

    def spoilt(member: Member) -> Member:
        return replace(member, index=change(member.index)) if member.tensor == tensor else member

    return Groups(
        replace(group, members=tuple(map(spoilt, group.members))) if group.name == group_name else group
        for group in groups
    )


SWAPPED = [
    ("resnet18", 64, "layer2.0.conv1", "layer2.0.conv2.weight"),
    ("resnet18", 64, "layer2.0.conv1", "layer2.0.bn1.bias"),
    ("resnet18", 64, "layer2.0.conv1", "layer2.0.bn1.running_var"),
    ("resnet18", 64, "layer3.residual", "layer3.0.downsample.0.weight"),
    ("resnet18", 64, "layer3.residual", "layer3.1.bn2.weight"),
    ("vit_mini", 32, "blocks.2.mlp", "blocks.2.mlp.fc1.bias"),
    ("vit_mini", 32, "blocks.2.mlp", "blocks.2.mlp.fc2.weight"),
    ("vit_mini", 32, "blocks.1.attn.heads", "blocks.1.attn.qkv.weight"),
    ("vit_mini", 32, "blocks.1.attn.heads", "blocks.1.attn.qkv.bias"),
    ("vit_mini", 32, "blocks.1.attn.heads", "blocks.1.attn.proj.weight"),
]


@pytest.mark.parametrize(("name", "size", "group", "tensor"), SWAPPED)
def test_a_planted_wrong_index_map_is_caught_and_named(name: str, size: int, group: str, tensor: str):
    backbone, groups, example = build(name, size)
    masks = random_masks(groups, 0.5, seed=0)
    first_kept = int(masks[group].int().argmax())
    first_removed = int((~masks[group]).int().argmax())

    def swap(index: np.ndarray) -> np.ndarray:
        index = index.copy()
        index[[first_kept, first_removed]] = index[[first_removed, first_kept]]
        return index

    few = plant(groups, group, tensor, swap).select(include=[group])
    with pytest.raises(RuntimeError, match=f"group `{group}`"):
        check_exact(backbone, few, {group: masks[group]}, example)


def test_a_forgotten_member_is_caught():
    backbone, groups, example = build("resnet_mini", 32)
    group = groups["layer2.0.conv1"]
    forgotten = tuple(member for member in group.members if member.tensor != "layer2.0.conv2.weight")
    few = Groups([replace(group, members=forgotten)])
    with pytest.raises(RuntimeError, match=r"group `layer2\.0\.conv1`"):
        check_exact(backbone, few, random_masks(few, 0.5, seed=0), example)


def test_zero_initialised_norms_hide_nothing():
    """With its real weights this backbone's second branch is silent; the check randomises them."""
    backbone, groups, example = build("resnet_mini", 32)
    assert (backbone.layer1[0].bn2.weight == 0).all()
    wrong = plant(groups, "layer1.0.conv1", "layer1.0.conv2.weight", lambda index: index[::-1].copy())
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1"):
        check_exact(backbone, wrong, random_masks(wrong, 0.5, seed=0), example)


def test_find_groups_refuses_an_activation_that_does_not_map_zero_to_zero():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1))
    with pytest.raises(RuntimeError, match="group `0`"):
        find_groups(net, torch.zeros(1, 3, 4, 4))
    assert find_groups(net, torch.zeros(1, 3, 4, 4), check=False).names == ["0", "2"]
