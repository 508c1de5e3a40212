"""Find a user's backbone, head and example input by name, and refuse what can't work before any work starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.inputs import as_inputs


def resolve_module(root: nn.Module, path: str, argument: str) -> nn.Module:
    """The submodule at a dotted path, without the wrapper of ``torch.compile``.

    Raises:
        ValueError: there is none; the message lists what ``root`` has.

    Example:
        >>> resolve_module(nn.Sequential(nn.ReLU()), "0", "backbone")
        ReLU()
    """
    try:
        module = root.get_submodule(path)
    except AttributeError:
        names = ", ".join(f"`{name}`" for name, _ in root.named_children()) or "no submodules"
        raise ValueError(
            f"Expected argument `{argument}` to be the dotted name of a submodule of {type(root).__name__}, "
            f"but got {path!r}. It has {names}."
        ) from None
    # torch.compile(module) is a wrapper that shares the module's parameters under other names.
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original


def first_tensor(example: Any, argument: str = "example_input") -> Tensor:
    """The batch of images in a module's ``example_input_array``, which is one or begins with one.

    Raises:
        ValueError: it does neither.
    """
    return as_inputs(example, argument)[0]


def check_head(
    module: nn.Module, backbone: nn.Module, head: nn.Module, example: tuple[Tensor, ...], n_classes: int | None
) -> None:
    """Refuse a head that is not what turns this backbone's features into the module's output.

    Raises:
        ValueError: the head is not linear, has another number of outputs than there are classes, or
            ``head(backbone(x))`` is not ``module(x)`` on the example.
    """
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"Expected argument `head` to name a torch.nn.Linear, but it names a {type(head).__name__}. Leave `head` "
            "out: the zoo entry is then written without one, LEEP skips it, and prototypes still serve."
        )
    if n_classes is not None and head.out_features != n_classes:
        raise ValueError(
            f"Expected argument `head` to have one output for each of the task's {n_classes} classes, but it has "
            f"{head.out_features}."
        )
    parameter = next(backbone.parameters())
    with evaluating(module):
        inputs = tuple(x.to(parameter.device, parameter.dtype if x.is_floating_point() else None) for x in example)
        expected, got = module(*inputs), head(backbone(*inputs))
        if (
            not isinstance(expected, Tensor)
            or expected.shape != got.shape
            or not torch.allclose(expected, got, 1e-4, 1e-4)
        ):
            raise ValueError(
                "Expected head(backbone(x)) to equal module(x) on the example input, but they differ. Name the linear "
                "layer that follows the backbone directly, or leave `head` out."
            )
