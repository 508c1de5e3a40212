from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import CostModel, Masks, count_macs, count_parameters, random_masks, shrink

from .recipes import build


@pytest.mark.parametrize(("name", "size"), [("resnet_mini", 32), ("resnet18", 64), ("vit_mini", 32)])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_the_formula_equals_the_count_on_the_small_backbone(name: str, size: int, ratio: float):
    backbone, groups, example = build(name, size)
    cost = CostModel(backbone, groups, example)
    masks = random_masks(groups, ratio, seed=1)
    small = shrink(backbone, groups, masks)
    assert cost.parameters(masks) == count_parameters(small) < count_parameters(backbone)
    assert cost.macs(masks) == count_macs(small, example) < count_macs(backbone, example)
    assert cost.macs(Masks.full(groups)) == count_macs(backbone, example)


def test_macs_of_a_vit_by_hand():
    backbone, _, example = build("vit_mini", 32)
    tokens, dim, hidden, patches = 65, 96, 384, 64
    block = tokens * (3 * dim * dim + dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    assert count_macs(backbone, example) == patches * dim * 3 * 16 + 4 * block


def test_macs_are_those_of_one_image_and_change_nothing():
    backbone, _, example = build("vit_mini", 32)
    fused = [block.attn.fused_attn for block in backbone.blocks]
    backbone.train()
    assert count_macs(backbone, example.repeat(3, 1, 1, 1)) == count_macs(backbone, example)
    assert backbone.training
    assert [block.attn.fused_attn for block in backbone.blocks] == fused


def test_shared_parameters_count_once():
    linear = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(linear, nn.ReLU(), linear)) == 20


def test_removing_a_unit_never_costs_more():
    backbone, groups, example = build("resnet_mini", 32)
    cost = CostModel(backbone, groups, example)
    masks = dict(Masks.full(groups))
    last = (cost.parameters(masks), cost.macs(masks))
    for name in groups.names:
        masks[name] = torch.arange(groups[name].size) > 0
        now = (cost.parameters(masks), cost.macs(masks))
        assert now[0] < last[0]
        assert now[1] < last[1]
        last = now
