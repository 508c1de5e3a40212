"""Stop a run whose loss is NaN or infinite, and say at which step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor


def require_finite(outputs: Any, step: int) -> None:
    """Raise if a training step's loss is not finite.

    Args:
        outputs: what Lightning hands to ``on_train_batch_end``: a tensor, a mapping with ``loss``, or None.
        step: optimizer steps done, for the message.

    Raises:
        FloatingPointError: the loss is NaN or infinite.

    Example:
        >>> require_finite({"loss": torch.tensor(float("nan"))}, 7)
        Traceback (most recent call last):
        ...
        FloatingPointError: The loss is nan at step 7. Nothing was written. Lower the learning rate, or look for \
images or labels that are not finite.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(loss, Tensor) and not torch.isfinite(loss).all():
        raise FloatingPointError(
            f"The loss is {loss.mean().item()} at step {step}. Nothing was written. Lower the learning rate, or look "
            "for images or labels that are not finite."
        )


class FiniteLoss(L.Callback):
    """Checks every training step's loss: :func:`require_finite`."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        require_finite(outputs, trainer.global_step)
