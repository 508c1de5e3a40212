"""Stop a run whose loss is NaN or infinite, and say at which step."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_mvp.pruning.loss_watch import LossWatch


def tell_of_round(trainer: L.Trainer, round_: int) -> None:
    """Tell the Trainer's :class:`FiniteLoss`, which may stand in front of the callback that prunes, of a round."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, FiniteLoss):
            other.watch.after_round(round_, trainer.global_step)


class FiniteLoss(L.Callback):
    """Stops at the first training step whose loss is not finite: :class:`LossWatch`."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch = LossWatch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.watch.see(outputs, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.check()
