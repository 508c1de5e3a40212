from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lightning_mvp.backbones import Masks, find_groups, random_masks, shrink, slice_state
from lightning_mvp.backbones.features import evaluating

from .recipes import build


@pytest.mark.parametrize("name", ["resnet_mini", "vit_mini"])
def test_the_small_backbone_holds_the_sliced_state_and_says_its_sizes(name: str):
    backbone, groups, example = build(name, 32)
    masks = random_masks(groups, 0.5, seed=0)
    small = shrink(backbone, groups, masks)
    sliced = slice_state(backbone.state_dict(), groups, masks)
    assert all(torch.equal(tensor, sliced[key]) for key, tensor in small.state_dict().items())
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (module.out_channels, module.in_channels)
        if isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == module.running_mean.shape == (module.num_features,)
    with evaluating(small):
        assert small(example).shape[1] == small.num_features == len(groups.kept_features(masks, backbone.num_features))


def test_attention_knows_its_heads():
    backbone, groups, _ = build("vit_mini", 32)
    mask = torch.tensor([True, False, False, True, True, False])
    attention = shrink(backbone, groups, {**Masks.full(groups), "blocks.0.attn.heads": mask}).blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (3, 16, 48)


def test_numpy_states_are_cut_like_torch_states():
    backbone, groups, _ = build("vit_mini", 32)
    masks = random_masks(groups, 0.5, seed=0)
    state = backbone.state_dict()
    expected = slice_state(state, groups, masks)
    got = slice_state({name: tensor.numpy() for name, tensor in state.items()}, groups, dict(masks))
    assert list(got) == list(expected)
    assert all(np.array_equal(got[name], expected[name].numpy()) for name in got)
    got["norm.weight"][:] = 7  # a copy, also where nothing was cut
    assert not (state["norm.weight"] == 7).any()


def test_shrink_keeps_what_is_not_a_shape():
    model = timm.create_model("resnet10t", num_classes=0).to(torch.bfloat16).to(memory_format=torch.channels_last)
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    groups = find_groups(model, torch.zeros(1, 3, 64, 64), check=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = shrink(model, groups, random_masks(groups, 0.5, seed=0))
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in small.parameters() if p.ndim == 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(small.layer1[0].conv1.weight, nn.Parameter)


def test_shrinking_twice_equals_shrinking_once():
    backbone, groups, example = build("resnet_mini", 32)
    once = random_masks(groups, 0.75, seed=0)
    first = Masks({name: mask | (torch.arange(len(mask)) % 2 == 0) for name, mask in once.items()})
    middle = shrink(backbone, groups, first)
    rest = Masks({name: mask[first[name]] for name, mask in once.items()})
    twice = shrink(middle, find_groups(middle, example, check=False), rest)
    expected = shrink(backbone, groups, once).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in twice.state_dict().items())


def test_a_timm_classifier_inside_is_cut_on_its_inputs():
    model = timm.create_model("resnet10t", num_classes=7)
    groups = find_groups(model, torch.zeros(1, 3, 64, 64))
    small = shrink(model, groups, random_masks(groups, 0.5, seed=0))
    assert (small.fc.in_features, small.fc.out_features, small.num_features) == (256, 7, 256)
    small.reset_classifier(3)
    assert small.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_masks_that_do_not_fit_are_refused():
    backbone, groups, _ = build("resnet_mini", 32)
    with pytest.raises(ValueError, match="masks of the backbone's groups"):
        shrink(backbone, groups, Masks({"layer1.residual": torch.ones(32, dtype=torch.bool)}))
