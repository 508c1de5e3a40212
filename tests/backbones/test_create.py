from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_mvp.backbones import count_parameters, create_backbone, find_groups, random_masks, recipe_of, shrink
from lightning_mvp.backbones.features import evaluating

from .recipes import CONF, build, recipe


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet_mini", 307_360),
        ("resnet_mini_s2", 307_360),
        ("vit_mini", 458_592),
        ("vit_mini_hybrid", 524_160),
        ("efficientnet_lite0", 3_371_008),
        ("resnet18_cifar", 11_168_832),
        ("resnet18", 11_176_512),
        ("resnet50", 23_508_032),
        ("vit_tiny", 5_524_416),
        ("deit_small", 21_665_664),
    ],
)
def test_every_shipped_recipe_builds(name: str, parameters: int):
    backbone = create_backbone(recipe(name))
    assert count_parameters(backbone) == parameters
    assert recipe_of(backbone) == recipe(name)
    assert json.loads(json.dumps(backbone.recipe)) == backbone.recipe


def test_all_shipped_recipes_are_tested_above():
    named = {path.stem for path in CONF.glob("*.yaml")} - {"timm"}  # whose model the user names
    assert len(named) == 10


@pytest.mark.parametrize("name", ["resnet_mini", "vit_mini"])
def test_a_pruned_backbone_is_built_again_from_recipe_and_weights(name: str, tmp_path):
    backbone, groups, example = build(name, 32)
    small = shrink(backbone, groups, random_masks(groups, 0.75, seed=0))
    path = tmp_path / "small.safetensors"
    save_file(small.state_dict(), path)
    again = create_backbone(json.loads(json.dumps(small.recipe)), weights=path)
    assert again.recipe == small.recipe
    with evaluating(small, again):
        assert torch.equal(small(example), again(example))
    assert find_groups(again, example, check=False).sizes == small.recipe["kept"]


def test_unknown_model_names_close_ones():
    with pytest.raises(ValueError, match=r"'resnet81'.*Close names: .*resnet18"):
        create_backbone({"model": "resnet81"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "unknown key 'depth'"),
        ({"model": None}, "'model' = None"),
        ({"arguments": {"no_such": 1}}, "'resnet18' can't be built.*no_such"),
        ({"replace": {"conv1": "Identity"}}, r"`replace.conv1` to be \[torch.nn class name"),
        ({"replace": {"conv1": ["NoSuch", {}]}}, "name a class of torch.nn, but got 'NoSuch'"),
        ({"replace": {"conv1": ["Conv2d", {"wrong": 1}]}}, "does not fit"),
        ({"replace": {"nowhere.conv1": ["Identity", {}]}}, "does not fit"),
        ({"in_chans": 1}, "images of 1 channel.*takes 3"),
        ({"kept": {"layer9": 3}}, r"`kept.layer9` to be a group of layer1\.residual"),
        ({"kept": {"layer1.residual": 33}}, r"`kept.layer1.residual` to be 1 to 32"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_backbone({**recipe("resnet_mini"), **changes})


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="No weights at"):
        create_backbone(recipe("resnet_mini"), weights=tmp_path / "none.safetensors")
    path = tmp_path / "weights.safetensors"
    state = build("resnet_mini", 32)[0].state_dict()
    save_file({**state, "conv1.weight": torch.zeros(32, 1, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"1 of .*conv1\.weight: expected \(32, 3, 3, 3\), got \(32, 1, 3, 3\)"):
        create_backbone(recipe("resnet_mini"), weights=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        create_backbone(recipe("resnet_mini"), weights=path)


def test_pretrained_and_local_weights_exclude_each_other():
    with pytest.raises(ValueError, match="`pretrained` without `weights`"):
        create_backbone(recipe("resnet18"), pretrained=True, weights="weights.safetensors")


def test_recipe_of_guesses_only_what_it_can_verify():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5)
    random = torch.random.get_rng_state()
    guess = recipe_of(model)
    assert torch.equal(random, torch.random.get_rng_state())
    assert guess is not None
    assert (guess["model"], guess["input_size"], guess["arguments"]["num_classes"]) == ("vit_tiny_patch16_224", 64, 5)
    changed = timm.create_model("resnet18", num_classes=0)
    changed.layer4 = nn.Identity()
    assert recipe_of(changed) is None
    assert recipe_of(nn.Linear(2, 2)) is None


def test_grey_images():
    backbone = create_backbone({"model": "resnet10t", "in_chans": 1})
    assert backbone(torch.zeros(2, 1, 64, 64)).shape == (2, 512)


def test_a_module_may_be_replaced_by_a_chain() -> None:
    plain = {"model": "resnet10t", "arguments": {}, "input_size": 32}
    chain = [
        ["Conv2d", {"in_channels": 3, "out_channels": 64, "kernel_size": 1}],
        ["BatchNorm2d", {"num_features": 64}],
    ]
    backbone = create_backbone({**plain, "replace": {"conv1": chain}})
    assert [type(part).__name__ for part in backbone.conv1] == ["Conv2d", "BatchNorm2d"]
    assert recipe_of(backbone) == backbone.recipe
    with pytest.raises(ValueError, match=r"or a list of such for a chain, but got \['Conv2d'\]"):
        create_backbone({**plain, "replace": {"conv1": [["Conv2d"], ["ReLU", {}]]}})
    with pytest.raises(ValueError, match=r"does not fit: .*nonsense"):
        create_backbone({**plain, "replace": {"conv1": [["ReLU", {"nonsense": 1}]]}})


def test_weights_with_timms_classifier_fit_the_backbone_without_it(tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t", num_classes=5)
    path = tmp_path / "whole.safetensors"
    save_file(
        {name: tensor.half() if tensor.ndim == 4 else tensor for name, tensor in whole.state_dict().items()}, path
    )
    backbone = create_backbone({"model": "resnet10t", "arguments": {"num_classes": 0}}, weights=path)
    assert torch.equal(backbone.conv1[0].weight, whole.conv1[0].weight.half().float())
    save_file({**whole.state_dict(), "other.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.weight: expected none"):
        create_backbone({"model": "resnet10t", "arguments": {"num_classes": 0}}, weights=path)
