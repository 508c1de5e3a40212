"""Example inputs: what a backbone takes in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def as_inputs(example_input: Any, argument: str = "example_input") -> tuple[Tensor, ...]:
    """The inputs of one forward pass as a tuple.

    Args:
        example_input: a batch of images; its shape, for a batch of zeros; or, for a backbone that takes several inputs,
            a tuple of batches.
        argument: its name, for errors.

    Raises:
        ValueError: none of these.

    Example:
        >>> [tuple(tensor.shape) for tensor in as_inputs([2, 3, 32, 32])]
        [(2, 3, 32, 32)]
    """
    several = isinstance(example_input, Sequence) and not isinstance(example_input, str)
    is_shape = several and bool(example_input) and all(isinstance(length, int) for length in example_input)
    if is_shape and min(example_input) > 0:
        example_input = (torch.zeros(*example_input),)
    tensors = tuple(example_input) if several else (example_input,)
    if not tensors or not all(isinstance(t, Tensor) for t in tensors) or tensors[0].ndim < 2 or not len(tensors[0]):
        if is_shape or isinstance(example_input, Tensor):
            got = f"shape {tuple(getattr(tensors[0], 'shape', tensors))}"
        else:
            kinds = ", ".join(type(t).__name__ for t in tensors)
            got = f"a tuple of {kinds or 'nothing'}" if several else kinds
        raise ValueError(
            f"Expected argument `{argument}` to be a batch of images (a tensor of shape (N, C, H, W)), its shape, or a "
            f"tuple of all inputs that the backbone takes, but got {got}."
        )
    return tensors


def unfit_example(module: nn.Module, inputs: Sequence[Tensor], error: Exception) -> ValueError:
    """What to raise where a module fails on its example input.

    Example:
        >>> print(unfit_example(nn.Linear(3, 2), [torch.zeros(1, 4)], RuntimeError("4 is not 3")))
        Expected argument `example_input` to be what Linear takes, but it fails on float32 (1, 4) (RuntimeError: 4 ...
    """
    shapes = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in inputs)
    return ValueError(
        f"Expected argument `example_input` to be what {type(module).__name__} takes, but it fails on {shapes} "
        f"({first_line(error)}). Give a batch as your data loader has it, of the right size and number of channels, or "
        "its shape. The default is the LightningModule's `example_input_array`, else its first batch."
    )


def one_sample(inputs: Sequence[Tensor], module: nn.Module) -> tuple[Tensor, ...]:
    """The first sample of a batch, on the module's device; floating-point inputs are brought to its dtype."""
    parameter = next(module.parameters(), torch.empty(0))
    return tuple(
        tensor[:1].detach().to(parameter.device, parameter.dtype if tensor.is_floating_point() else None)
        for tensor in inputs
    )


def first_line(error: Exception) -> str:
    """An error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
