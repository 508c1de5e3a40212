"""How a task is trained: the optimizer, and its learning rate from step to step."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lightning_mvp.pruning.choose import require_choice

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["onecycle", "constant"]
# One of ours by name, or a class by its import path with plain arguments: {"_target_": "timm.optim.Lion"}.
OptimizerChoice: TypeAlias = OptimizerName | Mapping[str, Any]
ScheduleChoice: TypeAlias = ScheduleName | Mapping[str, Any]
OPTIMIZER = ("optimizer", "learning_rate", "weight_decay")  # the arguments of `optimizer_of` that a module chooses


def optimizer_of(
    parameters: Iterable[nn.Parameter], optimizer: OptimizerChoice, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of those parameters that are trained; what has fewer than two axes has no weight decay.

    Args:
        parameters: of the module.
        optimizer: ``"sgd"`` (momentum 0.9, Nesterov), ``"adamw"``, or a mapping with ``_target_``, the import path of a
            subclass of ``torch.optim.Optimizer``, and further arguments. It gets two parameter groups, and ``lr``.
        learning_rate: the peak.
        weight_decay: of the group of weights with two or more axes.

    Raises:
        ValueError: the class can't be imported or made, or is no optimizer.

    Example:
        >>> weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
        >>> rmsprop = optimizer_of(weights, {"_target_": "torch.optim.RMSprop", "alpha": 0.9}, 0.01, 0.1)
        >>> [(group["lr"], group["alpha"], group["weight_decay"]) for group in rmsprop.param_groups]
        [(0.01, 0.9, 0.1), (0.01, 0.9, 0.0)]
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(optimizer, Mapping):
        made: torch.optim.Optimizer = _made("optimizer", optimizer, torch.optim.Optimizer, groups, lr=learning_rate)
        return made
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=learning_rate)


def schedule_of(optimizer: torch.optim.Optimizer, schedule: ScheduleChoice, steps: int) -> LRScheduler | None:
    """What sets the learning rate before each step; None: nothing does.

    Args:
        optimizer: at its peak rate.
        schedule: ``"onecycle"`` (:func:`one_cycle`), ``"constant"``, or a mapping with ``_target_``, the import path of
            a subclass of ``torch.optim.lr_scheduler.LRScheduler``, and further arguments. It moves on after each step.
        steps: how many there will be.

    Raises:
        ValueError: the class can't be imported or made, is no schedule, or waits for a metric.
    """
    if isinstance(schedule, Mapping):
        made: LRScheduler = _made("schedule", schedule, LRScheduler, optimizer)
        if isinstance(made, ReduceLROnPlateau):
            raise ValueError(
                "Expected argument `schedule` to be one that goes by steps, but ReduceLROnPlateau waits for a metric. "
                "Take torch.optim.lr_scheduler.CosineAnnealingLR, StepLR or the like."
            )
        return made
    return LambdaLR(optimizer, partial(one_cycle, total=steps)) if schedule == "onecycle" else None


def require_optim(
    learning_rate: float = 0.05,
    optimizer: OptimizerChoice = "sgd",
    weight_decay: float = 5e-4,
    schedule: ScheduleChoice = "onecycle",
    **others: Any,
) -> None:
    """Refuse an optimizer or a schedule that can't be made, before any work: both are made for two small tensors.

    Args:
        learning_rate: as in :func:`optimizer_of`.
        optimizer: as there.
        weight_decay: as there.
        schedule: as in :func:`schedule_of`.
        others: are not looked at.

    Raises:
        ValueError: what is wrong is in the message.
    """
    require_optim_choice("optimizer", optimizer, OptimizerName)
    require_optim_choice("schedule", schedule, ScheduleName)
    small = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    schedule_of(optimizer_of(small, optimizer, learning_rate, weight_decay), schedule, 2)


def require_optim_choice(name: str, choice: Any, names: object) -> None:
    """Refuse what is neither one of ours by name nor a mapping with ``_target_``. Nothing is imported for it.

    Example:
        >>> require_optim_choice("optimizer", "lion", OptimizerName)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `optimizer` to be one of 'sgd', 'adamw', but got 'lion'.
    """
    if not isinstance(choice, Mapping):
        require_choice(name, choice, names)
    elif not isinstance(choice.get("_target_"), str) or _has_target(list(choice.values())):
        raise ValueError(
            f"Expected argument `{name}` to have a class in `_target_` and plain arguments beside it, but got "
            f"{dict(choice)!r}."
        )


def _has_target(value: Any) -> bool:
    """Whether an argument describes an object, which is not made: a checkpoint may come from anybody."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_target, value))


def _made(name: str, choice: Mapping[str, Any], base: type, *arguments: Any, **options: Any) -> Any:
    """An object of the class that ``_target_`` names. A class that is no subclass of ``base`` is never called."""
    require_optim_choice(name, choice, Literal[()])
    target = str(choice["_target_"])
    try:
        cls = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `{name}` to name a class that can be imported, but {target!r} can't be ({error})."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        wanted = f"{base.__module__}.{base.__qualname__}"
        raise ValueError(f"Expected argument `{name}` to name a subclass of {wanted}, but got {target!r}.")
    own = {key: value for key, value in choice.items() if key != "_target_"}
    try:
        return cls(*arguments, **{**options, **own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected argument `{name}` to be what {target} takes, but: {error}") from error


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
