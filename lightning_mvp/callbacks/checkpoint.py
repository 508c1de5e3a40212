"""The best checkpoint among the pruned ones."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_mvp.callbacks.pruned_metric import WaitsForPruning


class PrunedCheckpoint(WaitsForPruning, ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` that ignores everything before MVPCallback's last round.

    The best model of a run is often one from before pruning, and a plain ``ModelCheckpoint(monitor=...)`` keeps that.
    Here ``best_model_path`` is the best *pruned* model: only values of the monitored metric count that were measured
    after the last round. Nothing is written before it, ``last.ckpt`` of ``save_last`` included: to be able to resume
    a run that is killed, add a plain ``ModelCheckpoint()`` without ``monitor``. Only ``save_on_exception`` writes
    whatever there is. If a run ends without a best model, a warning says why and what to do.

    Each fit starts without a best model, as MVPCallback starts anew; a resumed one goes on with its checkpoint's.

    Args: those of ``lightning.pytorch.callbacks.ModelCheckpoint``, with the same defaults. Without ``monitor`` the
    latest pruned model is kept.

    Raises:
        ValueError: at the start of fit, a Trainer without MVPCallback.
        MisconfigurationException: arguments that Lightning refuses; at the first validation, a ``monitor`` that
            nobody logs.

    Example:
        >>> from lightning_mvp import MVPCallback
        >>> best = PrunedCheckpoint(monitor="val_loss", save_top_k=2)
        >>> trainer = L.Trainer(callbacks=[MVPCallback(), best], accelerator="cpu", logger=False)
        >>> trainer.checkpoint_callback is best, best.best_model_path
        (True, '')
    """

    _withheld = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.best_k_models = {}
            self.best_model_path = self.kth_best_model_path = self.last_model_path = self._last_checkpoint_saved = ""
            self.best_model_score = self.current_score = None
            self.kth_value = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
            self._last_global_step_saved = 0
            self._defer_save_until_validation = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._begin("batch", trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.pruned:
            self._withheld = not self._counts("batch", trainer)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._withheld = False

    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        # A value that doesn't count is, to Lightning, not there yet: a save that is due waits for the next validation.
        candidates = super()._monitor_candidates(trainer)
        if self._withheld and self.monitor is not None:
            candidates.pop(self.monitor, None)
        return candidates

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.pruned:
            super().on_train_end(trainer, pl_module)
        if not self.best_model_path and self.save_top_k != 0:
            rank_zero_warn(f"{type(self).__name__} has no best model: {self._why_there_is_none()}")

    def _why_there_is_none(self) -> str:
        if not self.pruned:
            return (
                "the last pruning round had not happened when training ended. Raise max_steps or max_epochs, or prune "
                "in fewer or shorter rounds."
            )
        keep = "To keep the final weights, which are pruned, call trainer.save_checkpoint(path)."
        if self.monitor is None or self._counting is not None:
            return f"no save was due after the last pruning round. Save more often, or train longer. {keep}"
        return (
            f"`{self.monitor}` was not measured on the pruned model; what is measured before the last round, or over "
            "an epoch in which it happens, does not count. Raise max_steps or max_epochs, validate more often "
            f"(val_check_interval), or let the last round happen earlier. {keep}"
        )
