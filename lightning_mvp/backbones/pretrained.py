"""How a backbone sees images: what timm says of its weights, or what was written with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from timm.data import resolve_data_config

KEY = "preprocessing"  # of a safetensors file's metadata


def timm_preprocessing(recipe: Mapping[str, Any], *, pretrained: bool) -> dict[str, Any]:
    """What timm's configuration of a model says of its images, without building it.

    Args:
        recipe: as :func:`~lightning_mvp.backbones.create.create_backbone` takes it.
        pretrained: whether it has timm's own weights, which say the size of the images, too. Else the recipe's
            ``input_size`` does.

    Returns:
        ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop``, as in
        :class:`~lightning_mvp.tasks.facts.TaskFacts`.

    Example:
        >>> timm_preprocessing({"model": "resnet50", "input_size": 160}, pretrained=False)["input_size"]
        160
        >>> timm_preprocessing({"model": "vit_base_patch16_224.augreg_in21k_ft_in1k"}, pretrained=True)["mean"]
        [0.5, 0.5, 0.5]
    """
    found = timm.get_pretrained_cfg(recipe["model"])
    said = resolve_data_config({}, pretrained_cfg={} if found is None else found.to_dict())
    own = said["input_size"][-1] if pretrained else recipe.get("input_size", said["input_size"][-1])
    channels = recipe.get("in_chans") or 3
    how = said["interpolation"] if said["interpolation"] in ("bilinear", "bicubic", "nearest") else "bilinear"
    mean, std = (list(said[name]) for name in ("mean", "std"))
    if channels != len(mean):  # no moments are known of these channels: each is taken for the mean of those that are
        mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
    return {
        "input_size": _side((recipe.get("arguments") or {}).get("img_size", own)),
        "mean": mean,
        "std": std,
        "interpolation": how,
        "crop": float(said["crop_pct"]),
    }


def _side(size: Any) -> int:
    """The side of square images that timm is told as a number or as height and width."""
    return size if isinstance(size, int) else size[-1]


def require_size(recipe: Mapping[str, Any], size: int) -> None:
    """Refuse a size of images that the model can't take, such as a vision transformer's other than its own.

    Raises:
        ValueError: the message says what to change.

    Example:
        >>> require_size({"model": "vit_tiny_patch16_224"}, 64)
        Traceback (most recent call last):
        ...
        ValueError: Expected images of 224 × 224 for vit_tiny_patch16_224, but data.image_size or its weights say ...
    """
    found = timm.get_pretrained_cfg(recipe["model"])
    arguments = recipe.get("arguments") or {}
    if found is None or not found.fixed_input_size or arguments.get("dynamic_img_size"):
        return
    own = _side(arguments.get("img_size", found.input_size[-1]))
    if size != own:
        raise ValueError(
            f"Expected images of {own} × {own} for {recipe['model']}, but data.image_size or its weights say {size}. "
            f"Leave data.image_size out, or build the model for it: +backbone.recipe.arguments.img_size={size} "
            f"backbone.recipe.input_size={size}."
        )


def stored_preprocessing(weights: Path) -> dict[str, Any] | None:
    """What ``mvp-pretrain`` wrote with some weights; None where the file says nothing."""
    try:
        with safe_open(weights, "numpy") as file:
            text = (file.metadata() or {}).get(KEY)
        return None if text is None else dict(json.loads(text))
    except (SafetensorError, OSError, ValueError):
        return None  # whoever loads the weights says what is wrong with the file
