"""Rebuild an exported model with torch, timm and safetensors only. This file may be copied and used alone.

model = load("folder")  # the folder with recipe.json and model.safetensors; images in, logits out, in eval mode
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn


def replacement(spec: list[Any]) -> nn.Module:
    """A module of torch.nn from its name and arguments, or a chain of such, which replaces one of timm's modules."""
    if all(isinstance(part, list) for part in spec):
        return nn.Sequential(*map(replacement, spec))
    kind, options = spec
    return getattr(nn, kind)(**options)


def load(folder: str | Path) -> nn.Sequential:
    """The backbone and, where there is one, its linear head, at the shapes of the file's tensors."""
    recipe = json.loads((Path(folder) / "recipe.json").read_text())["recipe"]
    # Cloned, because tensors in a file may begin at any byte. On aligned ones kernels are faster and always the same.
    state = {name: tensor.clone() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    arguments = {"num_classes": 0, "in_chans": recipe.get("in_chans", 3), **(recipe.get("arguments") or {})}
    backbone: Any = timm.create_model(recipe["model"], pretrained=False, **arguments)
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
    return model.eval()
