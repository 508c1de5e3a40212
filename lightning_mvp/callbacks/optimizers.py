"""The optimizer that trains the backbone, and how many steps it will do."""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn

from lightning_mvp.backbones.groups import Groups


def find_optimizer(trainer: L.Trainer, backbone: nn.Module) -> torch.optim.Optimizer:
    """The one optimizer that owns parameters of the backbone.

    Raises:
        ValueError: none does, several do, or pruning can't work with it.
    """
    parameters = {id(parameter) for parameter in backbone.parameters()}
    owners = [
        optimizer
        for optimizer in trainer.optimizers
        if any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])
    ]
    if len(owners) != 1:
        raise ValueError(
            f"Expected one optimizer to own the backbone's parameters, but {len(owners)} of {len(trainer.optimizers)} "
            "do. Put all of them into one; parts with rates of their own can be its parameter groups."
        )
    (optimizer,) = owners
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "Expected an optimizer that keeps its state by parameter, but got LBFGS, which remembers removed units in "
            "one flat vector. Use SGD, AdamW or the like."
        )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"Expected gradients that are unscaled before the optimizer's step, but {type(optimizer).__name__}("
            "fused=True) unscales them inside it with precision='16-mixed'. Use fused=False or 'bf16-mixed'."
        )
    return optimizer


def require_owned(optimizer: torch.optim.Optimizer, backbone: nn.Module, groups: Groups) -> None:
    """Refuse units that the optimizer doesn't train.

    Raises:
        ValueError: a parameter of a unit's gate, which is named, is in no parameter group of the optimizer.
    """
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(backbone.named_parameters())
    for group in groups:
        for member in group.members:
            if member.gate and id(parameters[member.tensor]) not in owned:
                raise ValueError(
                    f"Expected the units of group `{group.name}` to be trained, but `{member.tensor}` is in no "
                    f"parameter group of {type(optimizer).__name__}. Give the optimizer the whole backbone."
                )


def planned_steps(trainer: L.Trainer) -> float:
    """The steps that the backbone's optimizer will do; ``inf`` if the run has no known length.

    With manual optimization one step of each optimizer in each batch is assumed, because only the module knows.
    """
    steps = float(trainer.estimated_stepping_batches)
    if steps < 0:  # an iterable data set without max_steps
        return float("inf")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler) and trainer.max_epochs not in (None, -1):
            batches = trainer.num_training_batches
            factors = [callback.get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs or 0)]
            steps = min(steps, float(sum(math.ceil(batches / factor) for factor in factors)))
    steps -= trainer.global_step  # steps of this Trainer's earlier fits; a checkpoint is not loaded yet
    optimizers = len(trainer.optimizers)
    if optimizers > 1 and trainer.max_steps != -1:  # Lightning counts the steps of all of them
        steps = min(steps, trainer.max_steps // optimizers)
    return steps
