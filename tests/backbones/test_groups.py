from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lightning_mvp.backbones import CostModel, Groups, Masks, UnitGroup, count_macs, find_groups, random_masks, shrink

from .recipes import build

MINI = {
    "layer1.residual": 32,
    "layer1.0.conv1": 32,
    "layer2.0.conv1": 64,
    "layer2.residual": 64,
    "layer3.0.conv1": 128,
    "layer3.residual": 128,
}


def gates(group: UnitGroup) -> set[str]:
    return {member.tensor for member in group.members if member.gate}


def test_resnet_mini_has_all_its_channels_in_forward_order():
    _, groups, _ = build("resnet_mini", 32)
    assert groups.sizes == MINI
    assert list(groups.sizes) == list(MINI)
    assert groups.skipped == []
    assert groups.feature_groups == [groups["layer3.residual"]]
    assert groups["layer1.residual"].kind == "residual"
    assert groups["layer1.0.conv1"].kind == "conv"


def test_vit_has_mlp_neurons_and_heads_and_notes_the_rest():
    _, groups, _ = build("vit_mini", 32)
    expected = {f"blocks.{i}.{part}": size for i in range(4) for part, size in (("attn.heads", 6), ("mlp", 384))}
    assert groups.sizes == expected
    assert groups.feature_groups == []
    assert len(groups.skipped) == 2
    assert groups.skipped[0].startswith("patch_embed.proj and 8 layers coupled to it: left out")
    assert groups.skipped[0].endswith("blocks.3.mlp.fc2")
    assert groups.skipped[1].startswith("blocks.0.norm1, ")


@pytest.mark.parametrize(("name", "count", "features"), [("resnet18", 12, 512), ("resnet50", 37, 2048)])
def test_every_convolution_of_a_resnet_is_in_a_group(name: str, count: int, features: int):
    backbone, groups, _ = build(name, 64)
    produced = {m.tensor for group in groups for m in group.members if m.role == "producer"}
    convolutions = {f"{n}.weight" for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert produced == convolutions
    assert len(groups) == count
    assert groups.feature_groups == [groups["layer4.residual"]]
    assert groups["layer4.residual"].feature_index.tolist() == [[i] for i in range(features)]


def test_gates_are_the_norms_that_end_branches_or_the_consumer():
    _, groups, _ = build("resnet_mini", 32)
    norms = {f"{norm}.{part}" for norm in ("layer2.0.bn2", "layer2.0.downsample.1") for part in ("weight", "bias")}
    assert gates(groups["layer2.residual"]) == norms
    assert gates(groups["layer2.0.conv1"]) == {"layer2.0.bn1.weight", "layer2.0.bn1.bias"}
    _, groups, _ = build("vit_mini", 32)
    assert gates(groups["blocks.1.mlp"]) == {"blocks.1.mlp.fc2.weight"}
    assert gates(groups["blocks.1.attn.heads"]) == {"blocks.1.attn.proj.weight"}


def test_without_a_norm_the_producer_is_the_gate():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    groups = find_groups(net, torch.zeros(1, 3, 8, 8))
    assert gates(groups["0"]) == {"0.weight", "0.bias"}


def test_a_head_owns_its_rows_of_q_k_v_and_its_columns_of_proj():
    _, groups, _ = build("vit_mini", 32)
    by_name = {member.tensor: member for member in groups["blocks.0.attn.heads"].members}
    rows = by_name["blocks.0.attn.qkv.weight"].index[1]
    assert rows.tolist() == [*range(16, 32), *range(112, 128), *range(208, 224)]
    assert by_name["blocks.0.attn.proj.weight"].index[1].tolist() == list(range(16, 32))


def test_a_timm_classifier_keeps_its_outputs_and_reads_the_last_group():
    model = timm.create_model("resnet10t", num_classes=7)
    groups = find_groups(model, torch.zeros(1, 3, 64, 64), check=False)
    assert groups.feature_groups == []
    members = {member.tensor: member for member in groups["layer4.residual"].members}
    assert members["fc.weight"].role == "consumer"
    assert members["fc.weight"].axis == 1
    assert "fc.bias" not in groups.layout


def test_a_flattened_channel_owns_several_columns():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    groups = find_groups(net, torch.zeros(1, 3, 8, 8)).select(include=["0"])
    kept = groups.kept("3.weight", (5, 144), {"0": np.array([False, True, False, False])})
    assert kept[0] is None
    assert kept[1].tolist() == list(range(36, 72))


def test_groups_that_share_an_axis_after_a_concatenation():
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cat([self.left(x), self.right(x)], dim=1).relu())

    groups = find_groups(Concat(), torch.zeros(1, 3, 4, 4))
    masks = {"left": np.array([True, False, True, False]), "right": np.array([False, True])}
    assert groups.kept("last.weight", (5, 6, 1, 1), masks)[1].tolist() == [0, 2, 5]


def test_select_by_patterns():
    _, groups, _ = build("resnet_mini", 32)
    assert groups.select(include=["layer2.*"]).names == ["layer2.0.conv1", "layer2.residual"]
    assert "layer1.residual: not selected" in groups.select(exclude=["*residual"]).skipped
    with pytest.raises(ValueError, match=r"'layer9\.\*' matches no group"):
        groups.select(include=["layer9.*"])


def test_kept_features_follow_the_output_group():
    _, groups, _ = build("resnet_mini", 32)
    masks = Masks({"layer3.residual": torch.arange(128) % 2 == 0})
    assert groups.kept_features(masks, 128).tolist() == list(range(0, 128, 2))
    _, groups, _ = build("vit_mini", 32)
    assert groups.kept_features(Masks.full(groups), 96).tolist() == list(range(96))


def test_the_given_model_stays_as_it_was():
    model = timm.create_model("resnet10t", num_classes=0).to(memory_format=torch.channels_last)
    model.train()
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    strides = [parameter.stride() for parameter in model.parameters()]
    random = torch.random.get_rng_state()

    with torch.no_grad():
        find_groups(model, torch.zeros(1, 3, 64, 64))

    assert torch.equal(random, torch.random.get_rng_state())
    assert flags == [(m.training, len(m._forward_hooks)) for m in model.modules()]
    assert trainable == [parameter.requires_grad for parameter in model.parameters()]
    assert strides == [parameter.stride() for parameter in model.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert calls == [1], "once, to be compared with the copy that is traced"


def test_frozen_models_have_the_same_groups():
    model = timm.create_model("resnet10t", num_classes=0)
    names = find_groups(model, torch.zeros(1, 3, 64, 64), check=False).names
    assert find_groups(model.requires_grad_(False), torch.zeros(1, 3, 64, 64), check=False).names == names


def test_layers_that_cannot_be_masked_are_left_out_by_name():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.PReLU(8), nn.Conv2d(8, 4, 1))
    groups = find_groups(net, torch.zeros(1, 3, 4, 4))
    assert groups.names == ["4"]
    assert groups.skipped[0].startswith("0: left out, `1` (GroupNorm)")
    assert groups.skipped[1].startswith("2: left out, `3` (PReLU)")


def test_whole_conv_groups_of_a_grouped_convolution_are_units():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1))
    groups = find_groups(net, torch.zeros(1, 3, 4, 4))
    assert groups.sizes == {"0": 4, "3": 5}
    assert {m.tensor: m.index.tolist() for m in groups["0"].members} == {
        "0.weight": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "0.bias": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "2.weight": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
        "2.bias": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
        "3.weight": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
    }
    small = shrink(net, groups, {"0": torch.tensor([True, False, False, True]), "3": torch.ones(5, dtype=torch.bool)})
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 4, 6)


def test_a_backbone_of_several_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.photo, self.depth, self.both = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, photo: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
            return self.both((self.photo(photo) + self.depth(depth)).relu())

    net, example = Two(), (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    groups = find_groups(net, example)
    assert {group.name: (group.size, group.kind) for group in groups} == {
        "residual": (6, "residual"),
        "both": (4, "conv"),
    }
    cost, masks = CostModel(net, groups, example), random_masks(groups, 0.5, seed=0)
    small = shrink(net, groups, masks)
    assert cost.macs(masks) == count_macs(small, example)
    assert small(*example).shape == (2, 2, 4, 4)
    with pytest.raises(ValueError, match=r"a tuple of Tensor, str"):
        find_groups(net, (example[0], "depth"))


def test_a_layer_used_twice_is_left_out():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.shared(self.shared(self.first(x)).relu()).relu())

    groups = find_groups(Twice(), torch.zeros(1, 3, 4, 4))
    assert groups.names == ["last"]
    assert any("`shared` is called 2 times" in note for note in groups.skipped)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.zeros(1, 3, 4, 4), "has none: no convolution"),
        (nn.Conv2d(3, 4, 1), "image", "`example_input` to be a batch of images"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveMaxPool2d(1, return_indices=True)),
            torch.zeros(1, 3, 4, 4),
            "one of the backbone's outputs",
        ),
    ],
)
def test_refusals(model: nn.Module, example: object, message: str):
    with pytest.raises(ValueError, match=message):
        find_groups(model, example)


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'a' twice"):
        Groups([UnitGroup("a", "mlp", 1, ()), UnitGroup("a", "mlp", 1, ())])
