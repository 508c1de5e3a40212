"""The self-check finds bugs planted in the groups, and names the group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import Groups, Member, UnitGroup, check_exact, find_groups, random_masks
from lightning_mvp.errors import SelfCheckError

from .families import build_small

Change = Callable[[Member], Member | None]


def spoilt(groups: Groups, name: str, tensor: str, change: Change) -> Groups:
    """All groups, but in one of them a member is changed, or dropped where the change is None."""
    assert any(member.tensor == tensor for member in groups[name].members), "the test itself is out of date"

    def spoil(group: UnitGroup) -> UnitGroup:
        if group.name != name:
            return group
        members = [change(member) if member.tensor == tensor else member for member in group.members]
        return replace(group, members=tuple(member for member in members if member is not None))

    return Groups(map(spoil, groups))


def shifted(member: Member) -> Member:
    """Each unit gets the entries of the one before it."""
    return replace(member, index=np.roll(member.index, 1, axis=0))


def off_by_one(member: Member) -> Member:
    """Each entry is the next one, as of a map that begins to count at one."""
    return replace(member, index=(member.index + 1) % (member.index.max() + 1))


def dropped(member: Member) -> None:
    """The member is forgotten."""


def q_and_k_mixed(member: Member) -> Member:
    """Every unit's rows of q are those of its neighbour, k and v stay."""
    heads, span = member.index.shape
    index = member.index.copy().reshape(heads, 3, span // 3)
    index[:, 0] = np.roll(index[:, 0], 1, axis=0)
    return replace(member, index=index.reshape(heads, span))


def rows_interleaved(member: Member) -> Member:
    """The rows as if q, k and v of a head lay side by side, as they do in some other models."""
    return replace(member, index=np.arange(member.index.size).reshape(member.index.shape))


def wrong_axis(member: Member) -> Member:
    """A consumer's outputs are taken for its inputs."""
    return replace(member, axis=1 - member.axis)


RESNET, CONVNEXT, DEIT = "resnet18", "convnext_atto", "deit3_small_patch16_224"
BUGS: list[tuple[str, str, str, Change]] = [
    (RESNET, "layer2.0.conv1", "layer2.0.conv1.weight", shifted),
    (RESNET, "layer2.0.conv1", "layer2.0.bn1.weight", shifted),
    (RESNET, "layer2.0.conv1", "layer2.0.bn1.running_mean", shifted),
    (RESNET, "layer2.0.conv1", "layer2.0.bn1.running_var", off_by_one),
    (RESNET, "layer2.0.conv1", "layer2.0.bn1.running_var", dropped),
    (RESNET, "layer2.0.conv1", "layer2.0.bn1.bias", dropped),
    (RESNET, "layer2.0.conv1", "layer2.0.conv2.weight", off_by_one),
    (RESNET, "layer3.residual", "layer3.0.downsample.0.weight", dropped),
    (RESNET, "layer3.residual", "layer4.0.downsample.0.weight", shifted),
    (RESNET, "layer3.residual", "layer4.0.conv1.weight", wrong_axis),
    (CONVNEXT, "stages.2.blocks.0.mlp", "stages.2.blocks.0.mlp.fc1.weight", shifted),
    (CONVNEXT, "stages.2.blocks.0.mlp", "stages.2.blocks.0.mlp.fc1.bias", off_by_one),
    (CONVNEXT, "stages.2.blocks.0.mlp", "stages.2.blocks.0.mlp.fc1.bias", dropped),
    (CONVNEXT, "stages.2.blocks.0.mlp", "stages.2.blocks.0.mlp.fc2.weight", shifted),
    (CONVNEXT, "stages.2.blocks.0.mlp", "stages.2.blocks.0.mlp.fc2.weight", wrong_axis),
    (DEIT, "blocks.1.attn.heads", "blocks.1.attn.qkv.weight", q_and_k_mixed),
    (DEIT, "blocks.1.attn.heads", "blocks.1.attn.qkv.weight", rows_interleaved),
    (DEIT, "blocks.1.attn.heads", "blocks.1.attn.qkv.bias", q_and_k_mixed),
    (DEIT, "blocks.1.attn.heads", "blocks.1.attn.proj.weight", off_by_one),
    (DEIT, "blocks.1.attn.heads", "blocks.1.attn.proj.weight", dropped),
    (DEIT, "blocks.0.mlp", "blocks.0.mlp.fc2.weight", shifted),
    (DEIT, "blocks.0.mlp", "blocks.0.mlp.fc1.bias", off_by_one),
]


# In `make test` all of the smallest model, and some of the others.
@pytest.mark.parametrize(
    ("model", "group", "tensor", "change"),
    [
        pytest.param(*bug, marks=() if bug[0] == CONVNEXT or i % 5 == 0 else pytest.mark.slow)
        for i, bug in enumerate(BUGS)
    ],
)
def test_a_planted_bug_is_found_and_its_group_named(model: str, group: str, tensor: str, change: Change) -> None:
    backbone, groups, example = build_small(model)
    masks = random_masks(groups, 0.5, seed=0)
    with pytest.raises(SelfCheckError, match=f"group `{group}`"):
        check_exact(backbone, spoilt(groups, group, tensor, change), masks, example)


class Silent(nn.Module):
    """A residual block as trained models have them: its second norm and layer scale are nearly silent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.bn1 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        nn.init.zeros_(self.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return x + self.gamma * self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


@cache
def silent() -> tuple[nn.Module, Groups, Tensor]:
    torch.manual_seed(0)
    net, example = Silent(), torch.randn(1, 3, 8, 8)
    return net, find_groups(net, example).select(include=["conv1"]), example


def test_a_bug_behind_a_zero_initialised_norm_and_a_small_layer_scale_is_found() -> None:
    net, groups, example = silent()
    masks = random_masks(groups, 0.5, seed=0)
    with pytest.raises(SelfCheckError, match="group `conv1`"):
        check_exact(net, spoilt(groups, "conv1", "conv2.weight", shifted), masks, example)


def test_groups_without_a_planted_bug_pass() -> None:
    for backbone, groups, example in (silent(), *map(build_small, (RESNET, CONVNEXT, DEIT))):
        assert check_exact(backbone, groups, random_masks(groups, 0.5, seed=0), example) <= 1e-9
