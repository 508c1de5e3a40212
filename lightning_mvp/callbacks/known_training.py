"""What a Trainer is known to train with: what tells one entry's training from another's where nobody says it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader


def known_training(trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's class, its rate and weight decay, the global batch and the precision, as plain JSON.

    What is not known is left out. A rate is the one before any schedule; parameter groups that differ give a list.

    Args:
        trainer: at the start of fit; its training loader is made now, if it was not yet.
        optimizer: the one that trains the backbone.
    """
    trainer.fit_loop.setup_data()
    known = {
        "optimizer": type(optimizer).__name__,
        "learning_rate": _of_groups([group.get("initial_lr", group.get("lr")) for group in optimizer.param_groups]),
        "weight_decay": _of_groups([group.get("weight_decay") for group in optimizer.param_groups]),
        "batch_size": _global_batch(trainer),
        "precision": str(trainer.precision),
    }
    return {name: value for name, value in known.items() if value is not None}


def _of_groups(values: list[Any]) -> float | list[float] | None:
    if any(value is None for value in values):
        return None
    numbers = [float(value) for value in values]
    return numbers[0] if len({*numbers}) == 1 else numbers


def _global_batch(trainer: L.Trainer) -> int | None:
    """The images of one optimizer step; None where a loader does not say, or accumulation changes."""
    if trainer.train_dataloader is None or any(
        isinstance(callback, GradientAccumulationScheduler)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    ):
        return None
    sizes = [getattr(loader, "batch_size", None) for loader in CombinedLoader(trainer.train_dataloader).flattened]
    if len(sizes) != 1 or type(sizes[0]) is not int:
        return None
    return sizes[0] * trainer.accumulate_grad_batches * trainer.world_size
