"""Stop a run whose loss is NaN or infinite, and say at which step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from typing_extensions import override

from lightning_mvp.pruning.loss_watch import LossWatch


class FiniteLoss(L.Callback):
    """Stops at the first training step whose loss is not finite: :class:`LossWatch`.

    No checkpoint is written after such a step.
    """

    def __init__(self) -> None:
        self.watch, self._step = LossWatch(), 0

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called once, before any training step: forgets the losses of an earlier fit."""
        self.watch = LossWatch()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch: notes the optimizer step that it belongs to."""
        self._step = trainer.global_step + 1

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch, with its loss."""
        self.watch.see(outputs, self._step)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called before a checkpoint is written."""
        self.watch.check()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last training step."""
        self.watch.check()


def loss_watches(trainer: L.Trainer) -> Iterator[LossWatch]:
    """The watches of the Trainer's :class:`FiniteLoss` callbacks, which are told of pruning rounds."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, FiniteLoss):
            yield other.watch
