"""Stop a run whose loss is NaN or infinite, and say at which step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

# A GPU is asked this often: each question waits for it.
STEPS_BETWEEN_QUESTIONS = 50


class LossWatch:
    """Remembers the first step whose loss was not finite.

    A loss on the CPU is checked at once. One on a GPU is checked there, and the GPU is asked every
    :data:`STEPS_BETWEEN_QUESTIONS` steps and by :meth:`check`.

    Example:
        >>> LossWatch().see({"loss": torch.tensor(float("nan"))}, 7)
        Traceback (most recent call last):
        ...
        FloatingPointError: The loss is not finite at step 7. Nothing was written. Lower the learning rate, or look \
for images or labels that are not finite.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._seen = 0

    def see(self, outputs: Any, step: int) -> None:
        """Look at a training step's loss.

        Args:
            outputs: what Lightning hands to ``on_train_batch_end``: a tensor, a mapping with ``loss``, or None.
            step: optimizer steps done, for the message.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._first is None:
            self._first = torch.full((), -1, device=loss.device)
        fails = ~torch.isfinite(loss.detach()).all() & (self._first < 0)
        self._first = torch.where(fails, step, self._first)
        self._seen += 1
        if loss.device.type == "cpu" or self._seen % STEPS_BETWEEN_QUESTIONS == 0:
            self.check()

    def check(self) -> None:
        """Ask whether a loss was not finite so far; waits for the device.

        Raises:
            FloatingPointError: one was.
        """
        if self._first is not None and self._first >= 0:
            raise FloatingPointError(
                f"The loss is not finite at step {int(self._first)}. Nothing was written. Lower the learning rate, or "
                "look for images or labels that are not finite."
            )


class FiniteLoss(L.Callback):
    """Stops at the first training step whose loss is not finite: :class:`LossWatch`."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch = LossWatch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watch.see(outputs, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch.check()
