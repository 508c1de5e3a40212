"""Backbones that a function of the user's own makes, where no name of timm's says how they are built.

A recipe names such a function as ``"model": "package.module:function"``. Recipes come from files, too, and a file's
word is not enough to run code: only functions that this process was told of are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

_TRUSTED: dict[str, Callable[..., Any]] = {}


def is_target(model: Any) -> bool:
    """Whether a recipe's ``model`` names a function.

    Example:
        >>> is_target("package.module:function"), is_target("resnet18")
        (True, False)
    """
    return isinstance(model, str) and ":" in model


def trust_backbone(target: str) -> str:
    """Let recipes name this function from now on, in this process: it is imported, and called wherever they do.

    Args:
        target: ``"package.module:function"``, importable from here. The function returns the dense backbone, without
            classifier, as it was pruned; its weights don't matter.

    Returns:
        ``target``, for ``create_backbone({"model": trust_backbone(target), "input_size": 224})``.

    Raises:
        ValueError: there is no such function.

    Example:
        >>> trust_backbone("torchvision.models:resnet18")
        'torchvision.models:resnet18'
    """
    module, _, name = target.partition(":")
    try:
        found = import_module(module) if module and name else None
    except ImportError as error:
        raise ValueError(
            f"Expected `backbone.target` to be package.module:function, importable from here, but got {target!r}: "
            f"{error}. The present folder is searched by commands; else set PYTHONPATH."
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise ValueError(
            f"Expected `backbone.target` to be package.module:function, such as my_nets:make_backbone, but got "
            f"{target!r}" + (f", and {module} has no function {name!r}." if found is not None else ".")
        )
    _TRUSTED[target] = function
    return target


def made_by(target: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What a trusted function returns.

    Raises:
        ValueError: nobody has told this process to trust it, or it returns no module.
    """
    if target not in _TRUSTED:
        raise ValueError(
            f"This backbone is made by {target!r}, and what a file names is not run. If you trust it, give "
            f"backbone.target={target} to the command, or call lightning_mvp.trust_backbone({target!r}) before."
        )
    backbone = _TRUSTED[target](**arguments)
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"Expected {target} to return a torch.nn.Module, but got a {type(backbone).__name__}.")
    return backbone
