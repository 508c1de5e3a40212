"""Build a backbone from a recipe, a plain JSON mapping that gives its shape but not its weights."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.targets import is_target, made_by
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.words import counted

__all__ = ["as_json", "create_backbone", "fingerprint", "load_weights", "recipe_of"]

KEYS = ("model", "arguments", "replace", "input_size", "in_chans", "kept")


def as_json(value: Any) -> Any:
    """Plain dicts, lists, strings and numbers from any nested containers, such as OmegaConf's.

    Raises:
        ValueError: something in it is not JSON.

    Example:
        >>> as_json({"layers": (1, 1, 1)})
        {'layers': [1, 1, 1]}
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [as_json(item) for item in value]
    raise ValueError(f"Expected a recipe of plain JSON values, but got {type(value).__name__}: {value!r}.")


def _require_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    recipe = dict(as_json(recipe))
    unknown = sorted(set(recipe) - set(KEYS))
    if unknown or not isinstance(recipe.get("model"), str):
        raise ValueError(
            f"Expected a recipe with the key 'model' and others of {', '.join(KEYS[1:])}, but got "
            + (f"the unknown key {unknown[0]!r}." if unknown else f"'model' = {recipe.get('model')!r}.")
        )
    if not is_target(recipe["model"]) and not timm.is_model(recipe["model"]):
        close = difflib.get_close_matches(recipe["model"], timm.list_models(), n=5, cutoff=0.5)
        hint = f"Close names: {', '.join(close)}." if close else "`timm.list_models()` lists all."
        raise ValueError(
            f"Expected `model` to be a name that timm {timm.__version__} knows, but got {recipe['model']!r}. {hint}"
        )
    return recipe


def _replace(backbone: nn.Module, name: str, spec: Any) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        parent = backbone.get_submodule(owner)
    except AttributeError as error:
        raise ValueError(f"The recipe's `replace.{name}` = {spec!r} does not fit: {error}.") from error
    setattr(parent, attribute, _module(name, spec))


def _module(name: str, spec: Any) -> nn.Module:
    """A module of torch.nn, or a chain of some."""
    if isinstance(spec, list) and spec and all(isinstance(part, list) for part in spec):
        return nn.Sequential(*(_module(name, part) for part in spec))
    if not isinstance(spec, list) or len(spec) != 2 or not isinstance(spec[1], dict):
        raise ValueError(
            f"Expected `replace.{name}` to be [torch.nn class name, {{arguments}}], or a list of such for a chain, but "
            f"got {spec!r}."
        )
    kind = getattr(nn, str(spec[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"Expected `replace.{name}` to name a class of torch.nn, but got {spec[0]!r}.")
    try:
        return kind(**spec[1])
    except TypeError as error:
        raise ValueError(f"The recipe's `replace.{name}` = {spec!r} does not fit: {error}.") from error


def load_weights(backbone: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into a backbone: every tensor, of the same shape, or nothing.

    The classifier of a file that still has one (timm's configuration of the model tells its name) is left out.

    Args:
        backbone: changed in place; tensors are cast to its types.
        path: a local file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or names or shapes differ; the first few are named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No weights at {path}. `mvp-pretrain` writes such a file.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    for classifier in _classifiers(backbone):
        for name in (f"{classifier}.weight", f"{classifier}.bias"):
            if name not in expected:
                state.pop(name, None)
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    if wrong:
        first = "; ".join(
            f"{name}: expected {expected.get(name, 'none')}, got {got.get(name, 'none')}" for name in wrong[:3]
        )
        raise ValueError(
            f"{path} does not fit the backbone: {len(wrong)} of {len(expected)} tensors differ ({first}). "
            "Use the recipe that the weights were made with."
        )
    backbone.load_state_dict(state)


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    named = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _with_kept(backbone: nn.Module, kept: dict[str, int], example: torch.Tensor) -> nn.Module:
    """The backbone cut to the shapes of a pruned one. The first units are kept, since weights are loaded later."""
    groups = find_groups(backbone, example, check=False)
    for name, count in kept.items():
        if name not in groups or not 1 <= count <= groups[name].size:
            limit = f"1 to {groups[name].size}" if name in groups else f"a group of {', '.join(groups.names)}"
            raise ValueError(f"Expected the recipe's `kept.{name}` to be {limit}, but got {count!r}.")
    masks = {group.name: torch.arange(group.size) < kept.get(group.name, group.size) for group in groups}
    return shrink(backbone, groups, Masks(masks))


def create_backbone(
    recipe: Mapping[str, Any], *, pretrained: bool = False, weights: str | Path | None = None
) -> nn.Module:
    """Build a backbone: a timm model without classifier, with some modules replaced.

    Args:
        recipe: ``model`` (a timm name, or a function that
            :func:`~lightning_mvp.backbones.targets.trust_backbone` was told of),
            ``arguments`` (for ``timm.create_model``; ``num_classes`` is 0 unless given),
            ``replace`` (dotted name → [torch.nn class name, its arguments], or a list of such for a chain; the name may
            be new), ``input_size``, ``in_chans``, and for a pruned backbone ``kept`` (group → number of units).
        pretrained: let timm download its weights.
        weights: a local safetensors file to load instead.

    Returns:
        The backbone, in train mode, with the plain recipe as ``.recipe``.

    Raises:
        ValueError: an unknown model, or a recipe or weights that don't fit; the message says what was expected.
        FileNotFoundError: there are no such weights.

    Example:
        >>> backbone = create_backbone({"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1]}})
        >>> backbone(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 512])
    """
    recipe = _require_recipe(recipe)
    in_chans = recipe.setdefault("in_chans", 3)
    arguments = {"num_classes": 0, **(recipe.get("arguments") or {})}
    kept = recipe.get("kept")
    if pretrained and (weights is not None or kept):
        raise ValueError(
            "Expected `pretrained` without `weights` and without `kept` in the recipe, but got both. Use pretrained="
            "False with a local file."
        )
    try:
        if is_target(recipe["model"]):
            backbone = made_by(recipe["model"], recipe.get("arguments") or {})
        else:
            backbone = timm.create_model(recipe["model"], pretrained=pretrained, in_chans=in_chans, **arguments)
    except TypeError as error:
        raise ValueError(f"{recipe['model']!r} can't be built with {arguments}: {error}.") from error
    for name, spec in (recipe.get("replace") or {}).items():
        _replace(backbone, name, spec)

    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    # Only a recipe with `replace` can get this wrong. Others are not checked, because some timm models reshape images
    # first, so that their first convolution takes more channels than the images have.
    if recipe.get("replace") and first is not None and first.in_channels != in_chans:
        raise ValueError(
            f"Expected a backbone for images of {counted(in_chans, 'channel')}, but its first convolution takes "
            f"{first.in_channels}. Let the recipe's `in_chans` and `replace` agree."
        )
    recipe.setdefault("input_size", _input_size(backbone))
    backbone.recipe = recipe  # type: ignore[assignment]
    if kept:
        size = recipe["input_size"]
        backbone = _with_kept(backbone, kept, torch.zeros(1, in_chans, size, size))
    if weights is not None:
        load_weights(backbone, weights)
    return backbone


def _input_size(backbone: nn.Module) -> int:
    """The side of a ViT's images, or what timm's configuration says."""
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if size is None:
        config = getattr(backbone, "pretrained_cfg", None) or {}
        size = config.get("input_size", (3, 224, 224))[1:]
    return int(size[0])


def recipe_of(backbone: nn.Module) -> dict[str, Any] | None:
    """The recipe of a backbone: its ``.recipe``, or for an unchanged timm model the one that builds the same shapes.

    Returns:
        A plain recipe, or None where none is known. A guess is verified: names and shapes of all tensors agree.

    Example:
        >>> recipe_of(timm.create_model("resnet10t", num_classes=0))["model"], recipe_of(nn.Linear(2, 2))
        ('resnet10t', None)
    """
    recipe = getattr(backbone, "recipe", None)
    if isinstance(recipe, Mapping):
        return copy.deepcopy(as_json(recipe))
    config = getattr(backbone, "pretrained_cfg", None) or {}
    model = config.get("architecture")
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if not model or not timm.is_model(model) or first is None:
        return None
    guess = {
        "model": model,
        "arguments": {"num_classes": getattr(backbone, "num_classes", 0)},
        "replace": {},
        "input_size": _input_size(backbone),
        "in_chans": first.in_channels,
    }
    if hasattr(backbone, "patch_embed"):
        guess["arguments"]["img_size"] = guess["input_size"]
    with torch.random.fork_rng(devices=[]):
        try:
            twin = create_backbone(guess)
        except (ValueError, RuntimeError, AssertionError):
            return None  # it was built with arguments that its configuration does not name
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    same = shapes == {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    return guess if same else None
