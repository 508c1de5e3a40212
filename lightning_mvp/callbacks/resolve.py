"""Find a user's backbone, head and example input, and refuse what can't work, before any work starts."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.inputs import as_inputs, one_sample, unfit_example
from lightning_mvp.lightning_internals import uncompiled

OTHER_HEAD = "Name the linear layer that follows the backbone directly, or leave `head` out."


def resolve_module(root: nn.Module, path: str, argument: str) -> nn.Module:
    """The submodule at a dotted path, without the wrapper of ``torch.compile``.

    Raises:
        ValueError: there is none; the message lists the submodules of ``root``.

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
    return uncompiled(module)


def example_inputs(given: tuple[Tensor, ...] | None, module: L.LightningModule) -> tuple[Tensor, ...] | None:
    """The backbone's example input: as given, else the first of the module's ``example_input_array``, else None.

    Raises:
        ValueError: the array neither is a batch of images nor begins with one.
    """
    array = module.example_input_array
    if given is None and array is not None:
        given = as_inputs(array[0] if isinstance(array, (tuple, list)) and array else array, "example_input_array")
    return None if given is None else tuple(tensor.detach().cpu() for tensor in given)


def check_head(
    module: nn.Module, backbone: nn.Module, head: nn.Module, example: tuple[Tensor, ...], n_classes: int | None
) -> None:
    """Refuse a head that does not make the module's output of this backbone's features.

    Raises:
        ValueError: the head is not linear, has another number of outputs than there are classes, the backbone fails on
            the example, or ``head(backbone(x))`` is not ``module(x)`` on it.
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
    with evaluating(module):
        inputs = one_sample(example, backbone)
        try:
            features = backbone(*inputs)
        except Exception as error:  # of any kind: the backbone is the user's
            raise unfit_example(backbone, inputs, error) from error
        if not isinstance(features, Tensor) or features.shape[-1] != head.in_features:
            got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise ValueError(
                f"Expected argument `head` to name the layer that reads the backbone's output, but it reads "
                f"{head.in_features} features, and the backbone's output on the example input is {got}. {OTHER_HEAD}"
            )
        try:
            expected = module(*inputs)
        except Exception as error:  # of any kind: the module is the user's
            raise ValueError(
                f"Expected {type(module).__name__}.forward to take what its backbone takes, so that "
                "head(backbone(x)) can be compared with module(x) on the example input, but it fails "
                f"({type(error).__name__}: {error}). Leave `head` out, or let forward take the backbone's inputs."
            ) from error
        outputs = head(features)
        if (
            not isinstance(expected, Tensor)
            or expected.shape != outputs.shape
            or not torch.allclose(expected, outputs, 1e-4, 1e-4)
        ):
            raise ValueError(
                f"Expected head(backbone(x)) to equal module(x) on the example input, but they differ. {OTHER_HEAD}"
            )
