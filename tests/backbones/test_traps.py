"""A test for each trap that docs/design.md lists under "Groups and Torch-Pruning", named after the trap."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import Masks, check_exact, count_macs, find_groups, random_masks, shrink
from lightning_mvp.backbones.selfcheck import randomise

from .families import build_small, coverage_models

IMAGE = torch.zeros(1, 3, 32, 32)


class Stage(nn.Module):
    """A residual stage whose layers are registered in a given order, and always called in the same."""

    LAYERS = ("stem", "body", "last")

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        convolutions = {"stem": 3, "first": 8, "second": 8, "last": 8}
        layers = {name: nn.Conv2d(inputs, 8, 3, padding=1) for name, inputs in convolutions.items()}
        body = nn.ModuleDict({"first": layers["first"], "second": layers["second"]})
        for name in order:
            self.add_module(name, body if name == "body" else layers[name])

    def forward(self, images: Tensor) -> Tensor:
        layers: Any = self._modules
        x, body = layers["stem"](images), layers["body"]
        return layers["last"](x + body["second"](body["first"](x).relu())).mean((2, 3))


def test_the_root_layer_is_an_artefact_of_traversal() -> None:
    names = [find_groups(Stage(order), IMAGE).names for order in (Stage.LAYERS, Stage.LAYERS[::-1])]
    assert names[0] == names[1] == ["body.residual", "body.first", "last"]


def test_it_leaves_the_model_in_eval_mode() -> None:
    model = timm.create_model("resnet10t", num_classes=0).train()
    find_groups(model, IMAGE)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_asserts_without_gradients(context: Any) -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    expected = find_groups(model, IMAGE).sizes
    with context():
        assert find_groups(model, IMAGE).sizes == expected


def test_it_finds_nothing_on_frozen_parameters() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0)
    expected = find_groups(model, IMAGE).sizes
    assert find_groups(model.requires_grad_(False), IMAGE).sizes == expected != {}


def test_it_takes_a_bare_batch_of_one_image_apart() -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    assert find_groups(model, IMAGE).sizes == find_groups(model, (IMAGE,)).sizes
    assert find_groups(model, IMAGE).sizes == find_groups(model, IMAGE.expand(3, -1, -1, -1)).sizes


@pytest.mark.parametrize(
    ("model", "norm"), [("convnext_atto", "LayerNorm2d"), ("swin_tiny_patch4_window7_224", "LayerNorm")]
)
def test_residual_channels_under_a_layer_norm_cannot_be_masked_exactly(model: str, norm: str) -> None:
    backbone, groups, _ = build_small(model)
    assert {group.kind for group in groups} <= {"mlp", "heads"}
    assert any(f"({norm}) mixes channels" in note for note in groups.skipped)
    norms = [f"{name}.weight" for name, part in backbone.named_modules() if isinstance(part, nn.LayerNorm)]
    assert norms
    assert not set(norms) & set(groups.layout)


def test_channels_under_a_group_norm_cannot_be_masked_exactly() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
    groups = find_groups(net, IMAGE)
    assert groups.names == ["3", "4"]
    assert [note for note in groups.skipped if note.startswith("0: left out, `1` (GroupNorm)")]


def test_heads_are_whole_and_attributes_are_set_by_us() -> None:
    backbone, groups, example = build_small("deit3_small_patch16_224")
    name = "blocks.1.attn.heads"
    small: Any = shrink(backbone, groups, {**Masks.full(groups), name: torch.tensor([True, False] * 3)})
    attention = small.blocks[1].attn
    dense: Any = backbone.get_submodule("blocks.1.attn")
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (3, dense.head_dim, 3 * dense.head_dim)
    assert attention.scale == dense.scale
    assert attention.qkv.out_features == 3 * attention.attn_dim
    assert attention.proj.in_features == attention.attn_dim
    assert small(example).shape == backbone(example).shape


def test_the_columns_of_swins_relative_position_bias_table_are_cut_by_us() -> None:
    backbone, groups, _ = build_small("swin_tiny_patch4_window7_224")
    keep = torch.tensor([False, True, False, True, True, False])
    small: Any = shrink(backbone, groups, {**Masks.full(groups), "layers.1.blocks.1.attn.heads": keep})
    attention = small.layers[1].blocks[1].attn
    dense: Any = backbone.get_submodule("layers.1.blocks.1.attn")
    assert attention.num_heads == 3
    assert torch.equal(attention.relative_position_bias_table, dense.relative_position_bias_table[:, keep])


@pytest.mark.parametrize("conv_groups", [2, 4, 8])
def test_in_a_grouped_convolution_whole_conv_groups_are_units(conv_groups: int) -> None:
    net: Any = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=conv_groups), nn.Conv2d(16, 4, 1)
    )
    groups = find_groups(net, IMAGE)
    assert groups["0"].size == conv_groups
    keep = torch.arange(conv_groups) % 2 == 0
    masks = {**Masks.full(groups), "0": keep}
    assert check_exact(net, groups, masks, IMAGE) <= 1e-9
    small: Any = shrink(net, groups, masks)
    grouped = small[3]
    assert grouped.groups == conv_groups // 2
    blocks = net[3].weight.reshape(conv_groups, 16 // conv_groups, 8 // conv_groups, 3, 3)
    assert torch.equal(grouped.weight.reshape(conv_groups // 2, *blocks.shape[1:]), blocks[keep])


def test_a_depthwise_convolutions_units_are_channels() -> None:
    backbone, groups, _ = build_small("mobilenetv2_035")
    depthwise = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert depthwise
    for name, module in depthwise.items():
        owners = {(group, index.shape) for _, group, index in groups.layout[f"{name}.weight"]}
        assert [shape for _, shape in owners] == [(module.out_channels, 1)]
    small = shrink(backbone, groups, random_masks(groups, 0.5, seed=0))
    for name in depthwise:
        cut: Any = small.get_submodule(name)
        assert cut.groups == cut.in_channels == cut.out_channels == len(cut.weight)


def test_prune_makes_new_parameters_and_loses_channels_last() -> None:
    model = timm.create_model("resnet10t", num_classes=0).to(memory_format=torch.channels_last)
    parameters = dict(model.named_parameters())
    groups = find_groups(model, IMAGE)
    small = shrink(model, groups, random_masks(groups, 0.5, seed=0))
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    kernels = [p for p in small.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)


HARD = ["eva02_tiny_patch14_224", "coat_tiny", "pvt_v2_b0"]
HARD += [pytest.param("maxvit_tiny_tf_224", marks=pytest.mark.slow)]  # type: ignore[list-item]


@pytest.mark.parametrize("model", HARD)
def test_attention_that_fails_or_is_mapped_wrongly_is_named(model: str) -> None:
    backbone, example = coverage_models.built(model)
    try:
        groups = find_groups(backbone, example)
    except ValueError as refusal:
        told = str(refusal)
    else:
        told = "\n".join(groups.skipped)
        assert not [group.name for group in groups if group.kind == "heads"]
    attention = [name for name, _ in backbone.named_modules() if "att" in name.rpartition(".")[2]]
    assert any(name in told for name in attention)


def test_with_real_weights_the_check_is_blind() -> None:
    """A wrong map behind a silent norm changes nothing until the weights are random."""
    model: Any = timm.create_model("resnet10t", num_classes=0, zero_init_last=True).eval()
    groups = find_groups(model, IMAGE)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        model.layer1[0].conv2.weight.copy_(model.layer1[0].conv2.weight.flip(1))
        assert torch.equal(model(images), before)
        randomise(model)
        before = model(images)
        model.layer1[0].conv2.weight.copy_(model.layer1[0].conv2.weight.flip(1))
        assert not torch.allclose(model(images), before)
    assert groups["layer1.0.conv1"].size == 64


@pytest.mark.parametrize("fused", [True, False])
def test_the_flop_counter_misses_fused_attention(fused: bool) -> None:
    backbone, _, example = build_small("vit_tiny_patch16_224")
    modules: list[Any] = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    assert len(modules) == 2
    flags = [module.fused_attn for module in modules]
    for module in modules:
        module.fused_attn = fused
    try:
        tokens, dim, patches = 5, 192, 4
        block = tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim) + 2 * tokens * tokens * dim
        assert count_macs(backbone, example) == patches * dim * 3 * 16 * 16 + 2 * block
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.fused_attn = flag
