from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lightning_mvp.backbones import Masks, apply_masks, find_groups, random_masks, shrink
from lightning_mvp.pruning.zeros import masks_from_zeros

from ..backbones.recipes import build


@pytest.mark.parametrize("name", ["resnet_mini", "vit_mini"])
def test_masks_that_were_applied_are_read_back(name: str):
    backbone, groups, _ = build(name, 32)
    masks = random_masks(groups, 0.5, seed=0)
    zeroed = copy.deepcopy(backbone)
    apply_masks(zeroed, groups, masks)
    assert masks_from_zeros(zeroed, groups) == masks
    assert masks_from_zeros(backbone, groups) == Masks.full(groups)


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_one_entry_that_is_not_zero_keeps_its_unit():
    net = small_net()
    groups = find_groups(net, torch.zeros(1, 3, 4, 4), check=False).select(include=["0"])
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[0].bias[:2] = 0
        net[0].bias[1] = 1e-30
    assert masks_from_zeros(net, groups)["0"].tolist() == [False, True, True, True]


def test_torch_prune_is_honoured():
    net = small_net()
    groups = find_groups(net, torch.zeros(1, 3, 4, 4), check=False).select(include=["0"])
    mask = torch.ones(4, 3, 1, 1)
    mask[2] = 0
    prune.custom_from_mask(net[0], "weight", mask)
    prune.custom_from_mask(net[0], "bias", mask[:, 0, 0, 0])
    assert masks_from_zeros(net, groups)["0"].tolist() == [True, True, False, True]


def test_a_parametrized_weight_is_read_as_the_forward_pass_sees_it():
    class DropFirst(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (torch.arange(4) > 0).view(-1, *[1] * (weight.ndim - 1))

    net = small_net()
    groups = find_groups(net, torch.zeros(1, 3, 4, 4), check=False).select(include=["0"])
    for name in ("weight", "bias"):
        parametrize.register_parametrization(net[0], name, DropFirst())
    assert masks_from_zeros(net, groups)["0"].tolist() == [False, True, True, True]


def test_a_physically_cut_model_is_refused():
    net = small_net()
    groups = find_groups(net, torch.zeros(1, 3, 4, 4), check=False).select(include=["0"])
    small = shrink(net, groups, random_masks(groups, 0.5, seed=0))
    with pytest.raises(ValueError, match="physically cut"):
        masks_from_zeros(small, groups)
