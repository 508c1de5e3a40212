"""Reconstruction: each layer of a small backbone gives what the dense one's gives, as well as least squares can."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import Groups, Masks, create_backbone, find_groups
from lightning_mvp.backbones import reconstruct as reconstruct_module
from lightning_mvp.backbones.features import batch_moments
from lightning_mvp.backbones.masks import random_masks
from lightning_mvp.backbones.reconstruct import _layers, reconstruct
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.units import Member, UnitGroup

from ..callbacks.user import RECIPE, VIT_RECIPE

GROUPED = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(inplace=True),
    nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, padding_mode="reflect"),
    nn.ReLU(inplace=True),
    nn.Conv2d(8, 8, 3, groups=8, bias=False),
    nn.ReLU(inplace=True),
    nn.Conv2d(8, 6, 1),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(6, 5),
    nn.GELU(),
    nn.Linear(5, 4, bias=False),
)
VOLUMES = nn.Sequential(
    nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 1), nn.Flatten(2), nn.ReLU(), nn.Conv1d(4, 3, 5)
)
SHAPES = {"resnet": (3, 16, 16), "vit": (3, 16, 16), "grouped": (3, 12, 12), "volumes": (2, 4, 4, 4)}


def net_of(kind: str) -> nn.Module:
    """With weights and statistics unlike those of a new layer."""
    torch.manual_seed(0)
    recipes = {"resnet": RECIPE, "vit": VIT_RECIPE}
    net = (
        create_backbone(recipes[kind])
        if kind in recipes
        else copy.deepcopy({"grouped": GROUPED, "volumes": VOLUMES}[kind])
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (parameter[0].numel() ** -0.5)
                if parameter.ndim > 1
                else 1 + torch.rand_like(parameter)
            )
    return net.eval()


def cut(kind: str, ratio: float = 0.5) -> tuple[nn.Module, nn.Module, Groups, Masks, Tensor]:
    net = net_of(kind)
    images = torch.randn(24, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
    groups = find_groups(net, images, check=False)
    masks = random_masks(groups, ratio, seed=0) if ratio else Masks.full(groups)
    return shrink(net, groups, masks), net, groups, masks, images


def layers_of(net: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each layer is given and makes of it, where batch norms use the images' own moments."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, given, made, name=name: seen.update({name: (given[0].clone(), made.clone())})
        )
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    with batch_moments(net):
        net(images)
    for hook in hooks:
        hook.remove()
    return seen


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.mark.parametrize("memory", [1e9, 0], ids=["in one pass", "streamed"])
@pytest.mark.parametrize("kind", SHAPES)
def test_no_layer_is_worse_than_the_cut_one_and_the_output_is_nearer(kind: str, memory: float) -> None:
    small, net, groups, masks, images = cut(kind)
    better = reconstruct(small, net, groups, masks, images, memory=memory)
    dense, begun = layers_of(net, images), dict(small.named_modules())
    gains = {}
    for name, (given, made) in layers_of(better, images).items():
        weight = net.get_parameter(f"{name}.weight")
        kept = groups.kept(f"{name}.weight", tuple(weight.shape), masks)[0]
        axis = -1 if isinstance(begun[name], nn.Linear) else 1
        wanted = dense[name][1] if kept is None else dense[name][1].index_select(axis, torch.as_tensor(kept))
        with torch.no_grad():
            errors = [(wanted - output).double() for output in (made, begun[name](given))]
        if kind == "resnet" or (kind, name) == ("grouped", "0"):  # a batch norm takes up the means
            errors = [error - error.mean((0, 2, 3), keepdim=True) for error in errors]
        own, before = (float(error.square().sum()) for error in errors)
        assert own <= before * (1 + 1e-5), name
        gains[name] = own / before if before else 1.0
    assert len(gains) == sum(isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in small.modules())
    assert min(gains.values()) < 0.9
    with batch_moments(net, small, better):
        kept = torch.as_tensor(groups.kept_features(masks, net(images).shape[1]))
        target = net(images)[:, kept]
        assert (better(images) - target).norm() < 0.9 * (small(images) - target).norm()


@pytest.mark.parametrize("kind", SHAPES)
def test_layers_are_fitted_in_parts_where_memory_holds_not_all_of_their_outputs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, net, groups, masks, images = cut(kind)
    passes = []
    one_pass = reconstruct_module._in_one_pass
    monkeypatch.setattr(
        reconstruct_module, "_in_one_pass", lambda *given: passes.append(list(given[2])) or one_pass(*given)
    )
    whole = reconstruct(small, net, groups, masks, images)
    assert len(passes) == 1
    layers = reconstruct_module._layers(small, net, groups, masks, images[:2])
    alive = reconstruct_module.ALIVE * max(layer.dense_outputs for layer in layers.values())
    largest = max(layer.recorded for layer in layers.values())
    inch = (alive + largest) * images.element_size() * len(images)
    assert same(reconstruct(small, net, groups, masks, images, memory=inch), whole)
    assert 1 < len(passes[1:]) <= len(layers)
    assert [name for part in passes[1:] for name in part] == passes[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_with_all_units_the_weights_come_back(kind: str) -> None:
    small, net, groups, masks, images = cut(kind, ratio=0.0)
    back = reconstruct(small, net, groups, masks, images)
    for name, parameter in back.named_parameters():
        torch.testing.assert_close(parameter, small.get_parameter(name), rtol=1e-5, atol=1e-5)


def chain(seed: int = 0) -> tuple[nn.Module, Groups]:
    """Linear layers without anything between them, whose hidden units all depend on three."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 8, bias=False), nn.Linear(8, 4)).double()
    one, two = np.arange(9)[:, None], np.arange(8)[:, None]
    members = (
        Member("0.weight", 0, one, "producer"),
        Member("0.bias", 0, one, "producer"),
        Member("1.weight", 1, one, "consumer"),
    )
    others = (Member("1.weight", 0, two, "producer"), Member("2.weight", 1, two, "consumer"))
    return net, Groups([UnitGroup("0", "mlp", 9, members), UnitGroup("1", "mlp", 8, others)])


def test_a_chain_of_linear_layers_is_exact_in_float64() -> None:
    net, groups = chain()
    masks = Masks({"0": torch.arange(9) < 5, "1": torch.arange(8) % 2 == 0})
    images = torch.randn(40, 3, dtype=torch.float64)
    small = shrink(net, groups, masks)
    assert not torch.allclose(small(images), net(images), atol=0.1)
    better = reconstruct(small, net, groups, masks, images, penalty=0.0)
    others = torch.randn(10, 3, dtype=torch.float64)
    torch.testing.assert_close(better(others), net(others), rtol=1e-9, atol=1e-9)
    # A penalty holds the weights at those that they were.
    held = reconstruct(small, net, groups, masks, images, penalty=1e9)
    torch.testing.assert_close(held[1].weight, small[1].weight, rtol=1e-6, atol=1e-6)


def test_nothing_but_weights_and_biases_is_touched() -> None:
    small, net, groups, masks, images = cut("resnet")
    small.train()
    small.get_submodule("bn1").momentum = 0.3
    small.get_submodule("layer1.0").eval()
    small.conv1.weight.requires_grad_(False)
    before = [copy.deepcopy(module) for module in (small, net)]
    better = reconstruct(small, net, groups, masks, images)
    assert same(small, before[0])
    assert same(net, before[1])
    for module, old in ((small, before[0]), (net, before[1]), (better, before[0])):
        assert [part.training for part in module.modules()] == [part.training for part in old.modules()]
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in old.parameters()]
        for norm, was in zip(norms(module), norms(old), strict=True):
            assert norm.momentum == was.momentum
            assert norm.state_dict().keys() == was.state_dict().keys()
            assert all(torch.equal(norm.state_dict()[key], was.state_dict()[key]) for key in was.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*net.modules(), *better.modules()])
    assert same(better, reconstruct(small, net, groups, masks, images))
    assert not same(better, small)


def norms(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_only_a_batch_norm_that_is_alone_takes_up_the_means() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alone, self.read_twice, self.free = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(self.alone(x))
            x = self.read_twice(x)
            return self.free(x + self.two(x)).mean((2, 3))

    net, groups = Branches(), Groups([UnitGroup("none", "conv", 1, ())])
    with batch_moments(net):
        layers = _layers(net, copy.deepcopy(net), groups, Masks.full(groups), torch.randn(2, 3, 4, 4))
    assert {name: layer.norm_follows for name, layer in layers.items()} == {
        "alone": True,
        "read_twice": False,
        "free": False,
    }


def test_a_failing_pass_leaves_the_dense_backbone_as_it_was() -> None:
    small, net, groups, masks, images = cut("resnet")
    before = copy.deepcopy(net)
    with pytest.raises(RuntimeError):
        reconstruct(small, net, groups, masks, images[:, :2])
    assert same(net, before)
    assert all(not module._forward_hooks for module in net.modules())


def test_a_layer_that_can_not_be_fitted_keeps_its_weights_and_is_named() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
            return self._conv_forward(images, weight, self.bias)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    groups = find_groups(net, torch.zeros(1, 3, 8, 8), check=False).select(include=["0"])
    masks = random_masks(groups, 0.5, seed=0)
    small, images = shrink(net, groups, masks), torch.randn(8, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"1 layer keeps the weights that it had: 2\."):
        better = reconstruct(small, net, groups, masks, images)
    assert torch.equal(better[2].weight, small[2].weight)
    assert not torch.equal(better[4].weight, small[4].weight)
    images[0, 0, 0, 0] = torch.inf
    with pytest.warns(UserWarning, match="not finite"):
        assert same(reconstruct(small, net, groups, masks, images), small)


def test_a_layer_that_runs_twice_or_shares_its_weight_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.tied, self.last = (nn.Linear(6, 6) for _ in range(4))
            self.tied.weight = self.last.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.tied(self.again(self.again(self.first(x)).relu()).relu()))

    net = Twice()
    groups = Groups([UnitGroup("none", "mlp", 1, ())])
    small = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(0.9)
    better = reconstruct(small, net, groups, Masks.full(groups), torch.randn(30, 6))
    changed = {name for name, p in better.named_parameters() if not torch.equal(p, small.get_parameter(name))}
    assert changed == {"first.weight", "first.bias"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalty": -1.0}, "Expected argument `penalty` to be a float of at least 0, but got -1.0"),
        ({"images": torch.zeros(1, 3, 16, 16)}, "to give two images or more, in each batch, but got [1]"),
        ({"images": torch.zeros(4, 3, 16, 16, dtype=torch.uint8)}, "floats, or batches of such, but got torch.uint8"),
        ({"images": []}, "to give two images or more"),
        ({"small": "dense"}, "Expected argument `small` to be what the masks leave of `dense`, with `conv1.weight`"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], words: str) -> None:
    small, net, groups, masks, images = cut("resnet")
    given = {"images": images, "small": small, **change}
    small = net if given.pop("small") == "dense" else small
    with pytest.raises(ValueError, match=re.escape(words)):
        reconstruct(small, net, groups, masks, **given)
