"""Every family that the documentation names is pruned exactly; what nobody named is exact or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import (
    CostModel,
    Groups,
    Masks,
    check_exact,
    count_macs,
    count_parameters,
    create_backbone,
    find_groups,
    random_masks,
    shrink,
)
from lightning_mvp.backbones.features import evaluating
from lightning_mvp.errors import SelfCheckError

from .families import SMALL, build_listed, build_small, coverage_models, found, small_recipe

Built = tuple[nn.Module, Groups, Tensor]
Builder = Callable[[str], Built]
# One of each kind of structure: plain, grouped, depthwise with factors, concatenated, MLPs, heads with a bias table.
QUICK = {"resnet18", "resnext50_32x4d", "mobilenetv3_small_050", "densenet121", "vit_tiny_patch16_224"}
QUICK |= {"convnext_atto", "swin_tiny_patch4_window7_224"}


def small(model: str, *values: Any, **options: Any) -> Any:
    """A parameter that is slow unless it is of a quick model."""
    marks = () if model in QUICK else pytest.mark.slow
    return pytest.param(*values, model, marks=marks, **options)


MODELS = [small(model, build_small, id=f"small-{model}") for model in SMALL]
MODELS += [
    pytest.param(build_listed, model, id=model, marks=pytest.mark.slow)
    for model in (*coverage_models.CONVOLUTIONAL, *coverage_models.TRANSFORMERS)
]


@pytest.mark.parametrize("ratio", [0.5, 0.9])
@pytest.mark.parametrize(("build", "model"), MODELS)
def test_zeroed_and_cut_models_agree_in_eval_and_train_mode(build: Builder, model: str, ratio: float) -> None:
    backbone, groups, example = build(model)
    assert check_exact(backbone, groups, random_masks(groups, ratio, seed=3), example) <= 1e-9


@pytest.mark.parametrize("ratio", [0.5, 0.9])
@pytest.mark.parametrize(("build", "model"), MODELS)
def test_costs_from_masks_are_those_counted_on_the_cut_model(build: Builder, model: str, ratio: float) -> None:
    backbone, groups, example = build(model)
    cost, masks = CostModel(backbone, groups, example), random_masks(groups, ratio, seed=3)
    small = shrink(backbone, groups, masks)
    assert cost.parameters(masks) == count_parameters(small) < count_parameters(backbone)
    assert cost.macs(masks) == count_macs(small, example) < count_macs(backbone, example)
    assert cost.macs(Masks.full(groups)) == count_macs(backbone, example)


@pytest.mark.parametrize(("build", "model"), MODELS)
def test_the_cut_model_is_built_again_from_its_recipe_and_weights(build: Builder, model: str) -> None:
    backbone, groups, example = build(model)
    small = shrink(backbone, groups, random_masks(groups, 0.5, seed=3))
    again = create_backbone(json.loads(json.dumps(small.recipe)))
    again.load_state_dict(small.state_dict(), strict=True)
    with evaluating(small, again):
        assert torch.equal(small(example), again(example))
    for name, module in small.named_modules():
        for attribute in ("groups", "in_channels", "out_channels", "in_features", "out_features", "num_heads"):
            assert getattr(module, attribute, None) == getattr(again.get_submodule(name), attribute, None)


@pytest.mark.parametrize("model", [small(model) for model in SMALL])
def test_the_classifiers_outputs_are_never_pruned(model: str) -> None:
    backbone, groups, example = found(small_recipe(model, num_classes=10))
    assert groups.feature_groups == []
    masks = random_masks(groups, 0.5, seed=3)
    assert check_exact(backbone, groups, masks, example) <= 1e-9
    small = shrink(backbone, groups, masks)
    with evaluating(small):
        assert small(example).shape == (1, 10)


@pytest.mark.parametrize(("model", "size"), [("dla34", 64), ("levit_128s", 224)])
def test_nor_are_those_of_a_convolution_or_of_two_normed_layers(model: str, size: int) -> None:
    _, groups, _ = found({"model": model, "arguments": {"num_classes": 10}, "input_size": size})
    assert groups.feature_groups == []


# What a family must have: a change that leaves more of it out would pass every test above.
KINDS = {
    "resnet18": {"conv", "residual"},
    "resnext50_32x4d": {"conv", "residual"},
    "legacy_seresnet18": {"conv", "residual"},
    "mobilenetv2_035": {"conv", "residual"},
    "efficientnet_b0": {"conv", "residual"},
    "regnety_002": {"conv", "residual"},
    "densenet121": {"conv"},
    "vgg11_bn": {"conv"},
    "convnext_atto": {"mlp"},
    "vit_tiny_patch16_224": {"heads", "mlp"},
    "deit_tiny_distilled_patch16_224": {"heads", "mlp"},
    "deit3_small_patch16_224": {"heads", "mlp"},
    "vit_small_patch14_dinov2": {"heads", "mlp"},
    "swin_tiny_patch4_window7_224": {"heads", "mlp"},
    "mixer_s32_224": {"mlp"},
    "resmlp_12_224": {"mlp"},
}


@pytest.mark.parametrize("model", KINDS)
def test_a_family_has_its_kinds_of_groups(model: str) -> None:
    assert KINDS[model] <= {group.kind for group in build_small(model)[1]}


WHOLE = ["resnet18", "resnet50", "resnext50_32x4d", "seresnet18", "mobilenetv2_035", "mobilenetv3_small_050"]
WHOLE += ["efficientnet_b0", "tf_efficientnet_lite0", "densenet121", "vgg11_bn"]


@pytest.mark.parametrize("model", WHOLE)
def test_every_convolution_of_a_batch_normed_network_is_in_a_group(model: str) -> None:
    backbone, groups, _ = build_small(model)
    assert groups.skipped == []
    convolutions = {f"{name}.weight" for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions <= set(groups.layout)


# Models that nobody listed --------------------------------------------------------------------------------------------

UNLISTED = ["lcnet_050", "edgenext_xx_small", "cs3darknet_s"]
UNLISTED_SLOW = ["tinynet_e", "ghostnet_050", "repvgg_a0", "hrnet_w18_small", "dla34", "inception_v3", "gernet_s"]
UNLISTED_SLOW += ["xcit_nano_12_p16_224", "levit_128s", "poolformer_s12", "convnextv2_atto", "mobileone_s0"]
UNLISTED_SLOW += ["fastvit_t8", "rexnet_100", "nf_regnet_b0", *coverage_models.HARD]


@pytest.mark.parametrize(
    "model",
    [
        *UNLISTED,
        *(pytest.param(model, marks=pytest.mark.slow) for model in UNLISTED_SLOW),
    ],
)
def test_a_model_that_nobody_listed_is_exact_or_refused_by_a_layers_name(model: str) -> None:
    backbone, example = coverage_models.built(model)
    layers = {name for name, _ in backbone.named_modules() if name}
    worst = 0.0
    try:
        groups = find_groups(backbone, example)  # its self-check is at 0.5
        worst = check_exact(backbone, groups, random_masks(groups, 0.9, seed=3), example)
    except (ValueError, SelfCheckError) as refusal:
        told = re.split(r"[\s:]+", str(refusal).replace("`", ""))
        blamed = [sorted(layers.intersection(told))]
    else:
        blamed = [[name for name in layers if re.match(rf"{re.escape(name)}(:|,| and )", n)] for n in groups.skipped]
    assert worst <= 1e-9
    assert all(blamed)
