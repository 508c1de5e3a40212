from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import Groups, Member, check_exact, find_groups, random_masks

from .recipes import build

BACKBONES = [("resnet_mini", 32), ("vit_mini", 32)]
LARGE = [("resnet18", 64), ("resnet50", 64), ("vit_tiny", 224)]
BACKBONES += [pytest.param(*each, marks=pytest.mark.slow) for each in LARGE]


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


def test_zero_initialised_norms_hide_nothing():
    """With its real weights this backbone's second branch is silent; the check randomises them."""
    backbone, groups, example = build("resnet_mini", 32)
    assert (backbone.layer1[0].bn2.weight == 0).all()
    wrong = plant(groups, "layer1.0.conv1", "layer1.0.conv2.weight", lambda index: index[::-1].copy())
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1"):
        check_exact(backbone, wrong, random_masks(wrong, 0.5, seed=0), example)


def test_an_activation_that_does_not_map_zero_to_zero_costs_the_group_before_it():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1))
    groups = find_groups(net, torch.zeros(1, 3, 4, 4))
    assert groups.names == ["2"]
    assert [note.partition(":")[0] for note in groups.skipped] == ["0"]
    assert find_groups(net, torch.zeros(1, 3, 4, 4), check=False).names == ["0", "2"]
