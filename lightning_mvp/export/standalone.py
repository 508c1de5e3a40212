"""Rebuild an exported model with torch, timm and safetensors only. This file may be copied and used alone.

model, transform = load("folder")  # the folder with recipe.json and model.safetensors; the model is in eval mode
logits = model(transform(PIL.Image.open("image.jpg"))[None])
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from math import floor
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2


def replacement(spec: list[Any]) -> nn.Module:
    """A module of torch.nn from its name and arguments, or a chain of such, which replaces one of timm's modules."""
    if all(isinstance(part, list) for part in spec):
        return nn.Sequential(*map(replacement, spec))
    kind, options = spec
    return getattr(nn, kind)(**options)


class Picture:
    """A PIL image in the channels that the model takes, or a uint8 tensor ``(..., C, H, W)`` as it is."""

    def __init__(self, channels: int) -> None:
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Any) -> Any:
        return v2.functional.to_image(image.convert(self.mode)) if hasattr(image, "convert") else image


def transform_of(facts: dict[str, Any]) -> Callable[[Any], torch.Tensor]:
    """The preprocessing of the model: a PIL image, or a uint8 tensor ``(..., C, H, W)``, to ``(..., C, S, S)``."""
    how = facts.get("interpolation", "bilinear")
    how = v2.InterpolationMode("nearest-exact" if how == "nearest" else how)
    return v2.Compose(
        [
            Picture(len(facts["mean"])),
            v2.Resize([floor(facts["input_size"] / facts.get("crop", 1.0))], interpolation=how, antialias=True),
            v2.CenterCrop(facts["input_size"]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(facts["mean"], facts["std"]),
            v2.ToPureTensor(),
        ]
    )


def load(folder: str | Path) -> tuple[nn.Sequential, Callable[[Any], torch.Tensor]]:
    """The model with the preprocessing of its images: a backbone and, where there is one, its linear head."""
    described = json.loads((Path(folder) / "recipe.json").read_text())
    recipe = described["recipe"]
    # Cloned, because tensors in a file may begin at any byte. On aligned ones kernels are faster and always the same.
    state = {name: tensor.clone() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    arguments = {"num_classes": 0, "in_chans": recipe.get("in_chans", 3), **(recipe.get("arguments") or {})}
    package, _, function = recipe["model"].partition(":")
    backbone: Any
    if function:  # somebody's own, which must be importable here, too
        backbone = getattr(import_module(package), function)(**(recipe.get("arguments") or {}))
    else:
        backbone = timm.create_model(recipe["model"], pretrained=False, **arguments)
    for name, spec in (recipe.get("replace") or {}).items():
        owner, _, attribute = name.rpartition(".")
        setattr(backbone.get_submodule(owner), attribute, replacement(spec))
    head = [nn.Linear(1, 1, bias="1.bias" in state)] if "1.weight" in state else []
    model = nn.Sequential(backbone, *head)

    for name in set(model.state_dict()) & set(state):
        owner, _, attribute = name.rpartition(".")
        part = model.get_submodule(owner)
        setattr(part, attribute, nn.Parameter(state[name]) if attribute in part._parameters else state[name])
    module: Any
    for module in model.modules():  # an attention comes before its `proj`, which still has the dense width here
        if isinstance(getattr(module, "proj", None), nn.Linear) and hasattr(module, "num_heads"):
            width, head_dim = module.proj.weight.shape[1], module.proj.in_features // module.num_heads
            module.num_heads, module.attn_dim = width // head_dim, width
        elif isinstance(module, nn.Conv2d):  # a grouped one has lost whole conv groups, each with its outputs
            if module.groups > 1:
                module.groups = len(module.weight) // (module.out_channels // module.groups)
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif getattr(module, "running_mean", None) is not None:
            module.num_features = len(module.running_mean)
    last = head[0] if head else backbone.get_classifier()
    if isinstance(last, nn.Linear) and hasattr(backbone, "head_hidden_size"):  # timm sizes new classifiers by it
        if backbone.num_features == backbone.head_hidden_size:
            backbone.num_features = last.in_features
        backbone.head_hidden_size = last.in_features
    model.load_state_dict(state, strict=True)  # strict: no tensor is missing or left over
    return model.eval(), transform_of(described["facts"])
