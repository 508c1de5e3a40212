"""The models of the coverage tables, and how each is built with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_mvp import create_backbone

SEED = 0

# Model → side of the images for the self-check, in pixels. A transformer's size is an argument when it is built.
CONVOLUTIONAL = {
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "seresnet18": 64,
    "legacy_seresnet18": 64,
    "wide_resnet50_2": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64,
    "tf_efficientnet_lite0": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "vgg11_bn": 224,
    "convnext_atto": 64,
}
TRANSFORMERS = {
    "vit_tiny_patch16_224": 64,
    "vit_small_patch16_224": 64,
    "deit_small_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "vit_small_patch14_dinov2": 56,
    "swin_tiny_patch4_window7_224": 112,
    "mixer_s32_224": 64,
    "resmlp_12_224": 64,
}
# Attention that is not timm's plain one: left out of the groups, or the whole model is refused.
HARD = {
    "eva02_tiny_patch14_224": 56,
    "coat_tiny": 64,
    "maxvit_tiny_tf_224": 64,
    "pvt_v2_b0": 64,
    "mobilevit_s": 64,
}
# More of timm's families, of all kinds.
MORE = {
    "botnet26t_256": 256,
    "cait_xxs24_224": 64,
    "coatnet_nano_rw_224": 64,
    "convit_tiny": 64,
    "convnextv2_atto": 64,
    "cs3darknet_s": 64,
    "cspresnet50": 64,
    "davit_tiny": 64,
    "dla34": 64,
    "ecaresnet26t": 64,
    "efficientformer_l1": 224,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 64,
    "gcresnet33ts": 64,
    "ghostnet_100": 64,
    "gmlp_s16_224": 64,
    "halonet26t": 256,
    "hgnet_tiny": 64,
    "hrnet_w18_small": 64,
    "levit_128s": 224,
    "mixnet_s": 64,
    "mobileone_s0": 64,
    "poolformer_s12": 64,
    "repvgg_a0": 64,
    "res2net50_14w_8s": 64,
    "resnetv2_50": 64,
    "tresnet_m": 64,
    "visformer_tiny": 224,
    "vit_small_patch16_dinov3": 64,
    "volo_d1_224": 64,
    "xcit_nano_12_p16_224": 64,
}
# Other libraries' models, and encoders that return several tensors.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_16": 224,
    "wide_resnet50_2": 64,
    "lraspp_mobilenet_v3_large": 64,
    "fcn_resnet50": 64,
}
OUTSIDE = {f"torchvision:{name}": size for name, size in TORCHVISION.items()}
OUTSIDE |= {"features:resnet18": 64, "features:mobilenetv3_small_100": 64}
OUTSIDE |= {f"transformers:{name}": 64 for name in ("ViT", "ConvNext", "ResNet")}
OUTSIDE["transformers:Swin"] = 224  # its windows fit no smaller images
MODELS = {**CONVOLUTIONAL, **TRANSFORMERS, **HARD}
OTHERS = {**MORE, **OUTSIDE}  # in the second table, without latencies
SIZED = {*TRANSFORMERS, "eva02_tiny_patch14_224", "coat_tiny", "maxvit_tiny_tf_224"}
SIZED |= {"cait_xxs24_224", "convit_tiny", "coatnet_nano_rw_224", "gmlp_s16_224", "volo_d1_224", "xcit_nano_12_p16_224"}
SIZED.add("vit_small_patch16_dinov3")
FAST = (
    "resnet18",
    "seresnet18",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "eva02_tiny_patch14_224",
)


def recipe_of_model(model: str, size: int | None = None) -> dict[str, Any]:
    """The recipe by which a model is built here, for images of a size, by default those of its self-check.

    A model that isn't listed is built as timm builds it; its images have 128 pixels, or its own size if that is fixed.
    """
    if model in {**MODELS, **OTHERS}:
        size = size or {**MODELS, **OTHERS}[model]
        return {"model": model, "arguments": {"img_size": size} if model in SIZED else {}, "input_size": size}
    with torch.device("meta"):
        config: Any = timm.create_model(model).pretrained_cfg
    size = config["input_size"][-1] if config.get("fixed_input_size") else size or 128
    return {"model": model, "arguments": {}, "input_size": size}


def built(model: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """A model with random weights and one image for it."""
    if ":" in model:
        torch.manual_seed(SEED)
        side = size or OTHERS.get(model, 64)
        return outside(*model.split(":"), side), torch.randn(1, 3, side, side)
    recipe = recipe_of_model(model, size)
    torch.manual_seed(SEED)
    return create_backbone(recipe), torch.randn(1, 3, recipe["input_size"], recipe["input_size"])


def outside(library: str, name: str, size: int) -> nn.Module:
    """A model that no recipe names, for images of a size."""
    if library == "features":
        return timm.create_model(name, features_only=True)
    if library == "torchvision":
        options: dict[str, Any] = {"image_size": size} if "vit" in name else {}
        options |= {"weights_backbone": None} if name.startswith(("lraspp", "fcn")) else {}
        return torchvision.models.get_model(name, weights=None, **options)
    import transformers

    options = {"image_size": size}
    if name == "ViT":
        options |= {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


def smallest_of_each_family() -> Iterator[tuple[str, str, int]]:
    """Module of timm, its model of fewest parameters (of those of the shortest names, its plain ones), and how many."""
    for family in timm.list_modules():
        sizes: dict[str, int] = {}
        for name in sorted(timm.list_models(module=family), key=lambda name: (len(name), name))[:24]:
            try:
                with torch.device("meta"):
                    sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            except Exception:  # some can't be made without values
                continue
        if sizes:
            model = min(sizes, key=lambda name: (sizes[name], name))
            yield family, model, sizes[model]
