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
    if several and example_input and all(isinstance(length, int) for length in example_input):
        return (torch.zeros(*example_input),)
    tensors = tuple(example_input) if several else (example_input,)
    if not tensors or not all(isinstance(t, Tensor) for t in tensors) or tensors[0].ndim < 2:
        got = f"a tuple of {', '.join(type(t).__name__ for t in tensors)}" if several else type(example_input).__name__
        raise ValueError(
            f"Expected argument `{argument}` to be a batch of images (a tensor of shape (N, C, H, W)), its shape, or a "
            f"tuple of all inputs that the backbone takes, but got {got}."
        )
    return tensors


def one_sample(inputs: Sequence[Tensor], module: nn.Module) -> tuple[Tensor, ...]:
    """The first sample of a batch, on the module's device and, where it is of floats, of its dtype."""
    parameter = next(module.parameters(), torch.empty(0))
    return tuple(
        tensor[:1].detach().to(parameter.device, parameter.dtype if tensor.is_floating_point() else None)
        for tensor in inputs
    )
