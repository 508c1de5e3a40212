"""Torch-Pruning's pruner as a rival: it removes what ours removes, and what it leaves computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import create_backbone
from lightning_mvp.backbones.reference import reference_pruner

VIT = {
    "model": "vit_tiny_patch16_224",
    "arguments": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 6, "num_classes": 0},
    "input_size": 16,
    "in_chans": 3,
}
STEM = {
    "patch_embed.proj": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "stride": 2, "padding": 1, "bias": False}],
        ["BatchNorm2d", {"num_features": 8}],
        ["Conv2d", {"in_channels": 8, "out_channels": 24, "kernel_size": 3, "stride": 2, "padding": 1}],
    ]
}


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("recipe", [VIT, {**VIT, "replace": STEM}], ids=["patches", "convolutions"])
def test_a_transformer_loses_whole_heads_and_hidden_units_and_still_computes(recipe: dict) -> None:
    torch.manual_seed(0)
    backbone, head = create_backbone(recipe), nn.Linear(24, 3)
    network, images = nn.Sequential(backbone, head), torch.randn(4, 3, 16, 16)
    kept = [0.8, 0.65, 0.5]
    pruner = reference_pruner(network, images, kept, [head])
    for fraction in kept:
        network.zero_grad()
        network(images).square().sum().backward()
        pruner.step()
        for block in backbone.blocks:
            heads = int(6 * fraction + 0.5)
            assert block.attn.num_heads == heads
            assert block.attn.qkv.weight.shape == (3 * 4 * heads, 24)
            assert block.attn.proj.weight.shape == (24, 4 * heads)
    assert [block.mlp.fc1.out_features for block in backbone.blocks] == [48, 48]
    convolutions = [layer.out_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert convolutions == ([24] if recipe is VIT else [4, 24])
    assert network(images).shape == (4, 3)
