"""The layout a network is trained in: fast, and never one in which a kernel writes where it must not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import create_backbone
from lightning_mvp.backbones.layout import gains_from_bf16, training_layout

from .recipes import recipe

# As a narrow pruned ResNet is trained; a kernel that writes past its buffer shows in the next allocations.
TRAIN = """
import torch
from lightning_mvp.backbones.layout import training_layout
torch.set_num_threads(1)
for channels in (2, 3, 4, 7, 8, 12):
    for _ in range(20):
        layer = torch.nn.Conv2d(channels, 6, 1, stride=2, bias=False)
        layout = training_layout(layer)
        layer.to(memory_format=layout)
        images = torch.randn(12, channels, 16, 16).contiguous(memory_format=layout)
        layer(images).sum().backward()
        expected = images[:, :, ::2, ::2].sum((0, 2, 3)).expand(6, channels)
        torch.testing.assert_close(layer.weight.grad[:, :, 0, 0], expected, rtol=1e-3, atol=1e-3)
    kept = [torch.randn(1000) for _ in range(200)]
print("sound")
"""


def test_gradients_of_narrow_strided_layers_are_right_on_this_machine():
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(32, 32, 1, stride=2, groups=8), False),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
        (nn.Conv2d(8, 8, 1, stride=2), True),
    ],
)
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_only_narrow_strided_layers_on_older_cpus_are_kept_from_it(
    layer: nn.Module, safe: bool, capability: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    expected = torch.channels_last if safe or capability == "AVX512" else torch.contiguous_format
    assert training_layout(nn.Sequential(nn.Conv2d(3, 8, 3), layer)) == expected


@pytest.mark.parametrize(
    ("name", "gains"),
    [("resnet_mini_s2", True), ("resnet18", True), ("vit_mini_hybrid", False), ("efficientnet_lite0", False)],
)
def test_only_ordinary_convolutional_networks_gain_from_bf16(name: str, gains: bool):
    assert gains_from_bf16(create_backbone(recipe(name))) == gains


@pytest.mark.parametrize(
    ("network", "gains"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)), True),
        (nn.Linear(4, 2), False),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), False),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.LayerNorm(4)), False),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.MultiheadAttention(4, 2)), False),
    ],
)
def test_what_gains_from_bf16_is_told_by_its_layers(network: nn.Module, gains: bool):
    assert gains_from_bf16(network) == gains
