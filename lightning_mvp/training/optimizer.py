"""How a task is trained: the optimizer, and its learning rate from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["onecycle", "constant"]
OPTIMIZER = ("optimizer", "learning_rate", "weight_decay")  # the arguments of `optimizer_of` that a module chooses


def optimizer_of(
    parameters: Iterable[nn.Parameter], optimizer: OptimizerName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of those parameters that are trained; what has fewer than two axes has no weight decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=learning_rate)


def one_cycle(step: int, total: int, warmup: float = 0.1) -> float:
    """The share of the peak learning rate at a step: a line up over ``warmup`` of the steps, then a cosine to zero.

    Args:
        step: 0 is the first step.
        total: number of steps; after them it is zero.
        warmup: fraction of ``total``, rounded up to a whole step.

    Example:
        >>> [round(one_cycle(step, 4), 2) for step in range(5)]
        [1.0, 0.75, 0.25, 0.0, 0.0]
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    falling = min(1.0, (step - rising + 1) / max(1, total - rising))
    return 0.5 * (1 + math.cos(math.pi * falling))
