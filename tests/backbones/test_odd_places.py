"""One place of a backbone that can't be cut exactly, or can't be followed, costs that place and nothing else."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_mvp.backbones import (
    CostModel,
    Groups,
    Masks,
    apply_masks,
    check_exact,
    count_macs,
    count_parameters,
    find_groups,
    random_masks,
    shrink,
)
from lightning_mvp.backbones.copies import tensors_in
from lightning_mvp.backbones.selfcheck import unsymmetrical_masks
from lightning_mvp.backbones.surgery import without_sync
from lightning_mvp.errors import SelfCheckError

IMAGES = torch.zeros(2, 3, 16, 16)


def body(width: int = 8) -> nn.Sequential:
    """Two convolutions with their norms, all channels ordinary units."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class Net(nn.Module):
    """The body, then some function of its maps; ``last`` reads 8 features."""

    def __init__(self, then: Callable[[Net, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.body, self.last, self.then = body(), nn.Linear(8, 4), then
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: Tensor) -> Any:
        return self.then(self, self.body(images))


def pooled(net: Net, x: Tensor) -> Tensor:
    return net.last(x.mean((2, 3)))


def noted(groups: Groups, name: str) -> str:
    """The note that begins with a name."""
    return next(note for note in groups.skipped if re.match(rf"{re.escape(name)}(:|,| and )", note))


def require_exact(net: nn.Module, groups: Groups, images: Tensor, training: bool) -> None:
    """Zeroed and cut agree by a comparison of the test's own, from the same random state."""
    dense = copy.deepcopy(net).double().train(training)
    masks = random_masks(groups, 0.5, seed=7)
    zeroed, small = copy.deepcopy(dense), shrink(dense, groups, masks)
    apply_masks(zeroed, groups, masks)
    outputs = []
    for model in (zeroed, small):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(tensors_in(model(torch.randn(4, *images.shape[1:], dtype=torch.float64))))
    assert count_parameters(small) < count_parameters(dense)
    for expected, got in zip(*outputs, strict=True):
        kept = torch.as_tensor(groups.kept_features(masks, expected.shape[1]))
        torch.testing.assert_close(got, expected.index_select(1, kept), rtol=0, atol=1e-9)


# One inexact group ----------------------------------------------------------------------------------------------------

INEXACT: dict[str, Callable[[Net, Tensor], Any]] = {
    "a sigmoid": lambda net, x: net.last(net.odd(x).sigmoid().mean((2, 3))),
    "an added constant": lambda net, x: net.last((net.odd(x) + 1).mean((2, 3))),
    "channels shuffled": lambda net, x: net.last(net.odd(x).flip(1).mean((2, 3))),
    "a softmax over channels": lambda net, x: net.last(net.odd(x).softmax(1).mean((2, 3))),
    "a root without a slope at zero": lambda net, x: net.last(net.odd(x).square().mean((2, 3)).sqrt()),
}


@pytest.mark.parametrize("what", INEXACT)
def test_an_inexact_group_is_left_out_and_the_rest_is_pruned(what: str) -> None:
    groups = find_groups(Net(INEXACT[what], odd=nn.Conv2d(8, 8, 1)), IMAGES)
    assert groups.names == ["body.0", "body.3", "last"]
    note = noted(groups, "odd")
    assert "left out, " in note
    assert ("backward pass" in note) == what.startswith("a root")


def test_several_inexact_groups_are_each_found() -> None:
    parts = {f"odd{i}": nn.Conv2d(8, 8, 1) for i in range(3)}
    net = Net(lambda net, x: pooled(net, net.odd2(net.odd1(net.odd0(x).sigmoid()).relu()).sigmoid()), **parts)
    groups = find_groups(net, IMAGES)
    assert groups.names == ["body.0", "body.3", "odd1", "last"]
    assert [note.partition(":")[0] for note in groups.skipped] == ["odd0", "odd2"]


def test_patterns_may_name_what_is_left_out_anyway() -> None:
    groups = find_groups(Net(INEXACT["a sigmoid"], odd=nn.Conv2d(8, 8, 1)), IMAGES)
    assert groups.select(exclude=["odd"]).names == groups.names
    with pytest.raises(ValueError, match="'old' matches no group"):
        groups.select(exclude=["old"])


def test_a_zoos_groups_are_a_contract() -> None:
    groups = find_groups(Net(INEXACT["a sigmoid"], odd=nn.Conv2d(8, 8, 1)), IMAGES)
    listed = groups.listed({"body.3": 8, "body.0": 8}, "zoo/")
    assert listed.names == ["body.3", "body.0"]
    assert "last: left whole, the zoo does not list it" in listed.skipped
    for sizes, found in (
        ({"odd": 8}, "odd: left out, zeroed"),
        ({"body.0": 9}, "8 units"),
        ({"new": 1}, "no such group"),
    ):
        with pytest.raises(ValueError, match=rf"the zoo at zoo/, such as `{next(iter(sizes))}`.*{found}"):
            groups.listed(sizes, "zoo/")


def test_masks_of_the_self_check_are_not_their_own_mirror_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    groups = find_groups(net, IMAGES)
    for seed in range(20):
        for mask in unsymmetrical_masks(groups, 0.5, seed).values():
            assert not torch.equal(mask, mask.flip(0))
    flipped = Groups(
        replace(
            group,
            members=tuple(replace(m, index=m.index[::-1].copy()) if m.role == "norm" else m for m in group.members),
        )
        for group in groups
    )
    palindrome = Masks({**Masks.full(groups), "0": torch.tensor([True, False, False, True])})
    assert check_exact(net, flipped, palindrome, IMAGES) <= 1e-9, "a palindrome hides a flip"
    with pytest.raises(SelfCheckError, match="group `0`"):
        check_exact(net, flipped, unsymmetrical_masks(groups, 0.5, 0), IMAGES)


# Randomness -----------------------------------------------------------------------------------------------------------

RANDOM: dict[str, Callable[[], Net]] = {
    "stochastic depth": lambda: Net(
        lambda net, x: pooled(net, x + net.drop(net.odd(x))),
        odd=nn.Conv2d(8, 8, 1),
        drop=torchvision.ops.StochasticDepth(0.5, "row"),
    ),
    "functional dropout": lambda: Net(lambda net, x: net.last(F.dropout(x.mean((2, 3)), 0.5, net.training))),
    "noise": lambda: Net(lambda net, x: pooled(net, x + torch.randn_like(x) if net.training else x)),
    "rrelu": lambda: Net(lambda net, x: pooled(net, net.act(-x)), act=nn.RReLU()),
    "attention": lambda: Net(
        lambda net, x: net.attn(*[net.last(x.flatten(2).mT)] * 3)[0].mean(1),
        attn=nn.MultiheadAttention(4, 2, 0.5, batch_first=True),
    ),
    "lstm": lambda: Net(
        lambda net, x: net.rnn(net.last(x.flatten(2).mT))[0].mean(1), rnn=nn.LSTM(4, 6, 2, dropout=0.5)
    ),
}


@pytest.mark.parametrize("what", RANDOM)
def test_randomness_is_no_structure(what: str) -> None:
    groups = find_groups(RANDOM[what](), IMAGES)
    assert {"body.0", "residual" if what == "stochastic depth" else "body.3"} <= set(groups.names)
    unlike = any(note.startswith("train mode: not compared") for note in groups.skipped)
    assert unlike == (what in ("functional dropout", "noise", "rrelu")), groups.skipped
    require_exact(RANDOM[what](), groups, IMAGES, training=what in ("stochastic depth",))


# Kinds of layers ------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "1d": (
        nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, groups=2), nn.Conv1d(6, 4, 1)
        ),
        torch.zeros(2, 3, 20),
        ["0", "4"],
    ),
    "3d": (
        nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 1)),
        torch.zeros(2, 3, 6, 6, 6),
        ["0", "3"],
    ),
    "transposed": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        ),
        torch.zeros(2, 3, 8, 8),
        ["0", "2", "4"],
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_other_convolutions_are_ordinary_units(kind: str) -> None:
    net, example, names = LAYERS[kind]
    groups = find_groups(net, example)
    assert groups.names == names
    for training in (False, True):
        require_exact(net, groups, example, training)
    masks = random_masks(groups, 0.5, seed=1)
    small, cost = shrink(net, groups, masks), CostModel(net, groups, example)
    assert (cost.parameters(masks), cost.macs(masks)) == (count_parameters(small), count_macs(small, example))


def test_every_layer_with_parameters_is_in_a_group_or_in_a_note() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.words, self.rnn = body(), nn.Embedding(10, 8), nn.GRU(8, 8, batch_first=True)
            self.attn, self.up = nn.MultiheadAttention(8, 2, batch_first=True), nn.ConvTranspose2d(8, 8, 2, groups=2)
            self.norm, self.unused, self.by_hand = nn.LayerNorm(8), nn.Linear(3, 3), nn.Linear(8, 8)

        def forward(self, images: Tensor) -> Tensor:
            x = self.up(self.body(images)).flatten(2).mT + self.words.weight[0]
            x = self.norm(self.attn(x, x, x)[0])
            return F.linear(self.rnn(x)[0].mean(1), self.by_hand.weight)

    net = Everything()
    groups = find_groups(net, IMAGES)
    owners = {member.tensor.rpartition(".")[0] for group in groups for member in group.members}
    words = {word for note in groups.skipped for word in re.findall(r"[\w.]+", note)}
    owning = [name for name, part in net.named_modules() if name and part._parameters]
    assert set(owning) <= owners | words
    assert any("unused" in note and "does not call it" in note for note in groups.skipped)


@pytest.mark.parametrize("what", ["parameter", "module"])
def test_what_has_two_names_stays_whole_and_both_are_told(what: str) -> None:
    net = Net(
        lambda net, x: pooled(net, net.two(net.one(x).relu()).relu()), one=nn.Conv2d(8, 8, 1), two=nn.Conv2d(8, 8, 1)
    )
    if what == "module":
        net.add_module("stages", nn.ModuleList([net.one]))
        tensors = ("`one.weight`", "`stages.0.weight`")
    else:
        net.two.weight = net.one.weight  # type: ignore[union-attr]
        tensors = ("`one.weight`", "`two.weight`")
    groups = find_groups(net, IMAGES)
    assert "body.0" in groups.names
    assert not {"one", "two", "stages.0"} & {m.tensor.rpartition(".")[0] for group in groups for m in group.members} - {
        "two"
    }
    assert all(name in noted(groups, "one") for name in tensors)


# Copies that must be the model ----------------------------------------------------------------------------------------


def test_a_hook_that_changes_an_output_is_kept_and_one_that_carries_values_is_refused_by_name() -> None:
    shifted = Net(pooled)
    shifted.body[5].register_forward_hook(lambda module, inputs, output: output + 1)
    assert find_groups(shifted, IMAGES).names == ["body.0", "last"], "shifted channels are not zero"

    class Carried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.seen = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), {}
            self.a.register_forward_hook(lambda module, inputs, output: self.seen.update(a=output))

        def forward(self, images: Tensor) -> Tensor:
            z = self.b(self.a(images))
            return torch.cat([self.seen["a"], z], 1)

    carried = Carried()
    carried(IMAGES)  # what it left behind must not be taken for the copy's own
    with pytest.raises(ValueError, match="forward hooks on `a` carry values around the forward pass"):
        find_groups(carried, IMAGES)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_stays_whole_and_nobody_else_is_blamed(norm: Any) -> None:
    net = Net(lambda net, x: pooled(net, net.odd(x)), odd=norm(nn.Conv2d(8, 8, 1)))
    groups = find_groups(net, IMAGES)
    assert groups.names == ["body.0", "last"]
    assert "`odd` (Conv2d) has a parameter of its own" in " ".join(groups.skipped)
    assert shrink(net, groups, random_masks(groups, 0.5, 0))(IMAGES).shape == (2, 2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_hides_no_layer(reentrant: bool) -> None:
    net = Net(lambda net, x: pooled(net, checkpoint(net.odd, x, use_reentrant=reentrant)), odd=nn.Conv2d(8, 8, 1))
    assert find_groups(net, IMAGES).names == ["body.0", "body.3", "odd", "last"]


# Outputs --------------------------------------------------------------------------------------------------------------


def test_of_several_outputs_all_inside_is_pruned() -> None:
    class Auxiliary(Net):
        def forward(self, images: Tensor) -> Any:
            x = self.body[:3](images)
            y = self.last(self.body[3:](x).mean((2, 3)))
            return {"logits": y, "aux": [self.get_submodule("aux")(x.mean((2, 3)))]} if self.training else y

    net = Auxiliary(pooled, aux=nn.Linear(8, 4))
    groups = find_groups(net, IMAGES)
    assert groups.names == ["body.0", "body.3"]
    assert "aux.weight" in groups.layout
    assert "one of the backbone's outputs" in noted(groups, "last")
    for training in (False, True):
        require_exact(net, groups, IMAGES, training)
    pyramid = Net(lambda net, x: (x, pooled(net, net.odd(x))), odd=nn.Conv2d(8, 8, 1))
    assert find_groups(pyramid, IMAGES).names == ["body.0", "odd"]


def test_tokens_keep_their_features() -> None:
    net = Net(lambda net, x: net.last(x.flatten(2).mT))
    groups = find_groups(net, torch.zeros(1, 3, 4, 4))
    assert groups.names == ["body.0", "body.3"]
    assert groups.feature_groups == []


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 10)])
def test_synchronised_batch_norm_of_any_rank(shape: tuple[int, ...]) -> None:
    layers = (nn.Linear(3, 8), nn.Linear(8, 4)) if len(shape) == 2 else (nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1))
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layers[0], nn.BatchNorm1d(8), nn.ReLU(), layers[1]))
    groups = find_groups(net, torch.zeros(shape))
    assert groups["0"].size == 8
    small = without_sync(shrink(net, groups, random_masks(groups, 0.5, 0)), (torch.zeros(shape),))
    assert type(small.get_submodule("1")) is nn.BatchNorm1d
    assert small(torch.randn(shape)).shape[1] == 2


def test_a_wrong_example_is_told_by_its_argument() -> None:
    with pytest.raises(
        ValueError, match=r"`example_input` to be what Net takes, but it fails on float32 \(1, 5, 16, 16\)"
    ):
        find_groups(Net(pooled), torch.zeros(1, 5, 16, 16))
    with pytest.raises(ValueError, match="return a tensor, or a tuple, list or dict of tensors, but got NoneType"):
        find_groups(Net(lambda net, x: None), IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gcresnet33ts", "focalnet_tiny_srf", "ecaresnet26t"])
def test_models_whose_index_maps_multiply_come_to_an_end(model: str) -> None:
    import timm

    assert len(find_groups(timm.create_model(model, num_classes=0), torch.zeros(1, 3, 64, 64))) > 5


def test_where_torch_pruning_fails_on_a_concatenation_only_its_layers_are_left_whole() -> None:
    backbone = torchvision.models.shufflenet_v2_x0_5().eval()
    groups = find_groups(backbone, torch.zeros(1, 3, 64, 64))
    assert "can't follow channels through a" in noted(groups, "stage2.1.branch2.5")
    blocks = (
        [(2, block) for block in range(4)] + [(3, block) for block in range(8)] + [(4, block) for block in range(4)]
    )
    inside = {f"stage{stage}.{block}.branch2.0" for stage, block in blocks}
    assert inside <= set(groups.names)
    require_exact(backbone, groups, torch.zeros(1, 3, 64, 64), training=False)
