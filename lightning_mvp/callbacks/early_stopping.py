"""Early stopping whose patience starts after pruning."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from typing_extensions import override

from lightning_mvp.callbacks.pruned_metric import WaitsForPruning


class PrunedEarlyStopping(WaitsForPruning, EarlyStopping):
    """Lightning's ``EarlyStopping`` that ignores everything before MVPCallback's last round.

    Metrics fall at each round, and a plain ``EarlyStopping`` would end the run in the middle of pruning. Here the best
    score, patience, thresholds and the check for NaN disregard all values that were measured before the last
    round. Each new fit starts anew, as MVPCallback does. A resumed fit goes on with its checkpoint's score and
    patience.

    The arguments are those of ``lightning.pytorch.callbacks.EarlyStopping``, with the same defaults.

    Raises:
        ValueError: at the start of fit, a Trainer without MVPCallback.
        RuntimeError: at the first check, even before the last round, a ``monitor`` that nobody logs, unless ``strict``
            is false.
        MisconfigurationException: arguments that Lightning refuses.

    Example:
        >>> from lightning_mvp import MVPCallback
        >>> patient = PrunedEarlyStopping(monitor="val_loss", patience=5)
        >>> trainer = L.Trainer(callbacks=[MVPCallback(), patient], accelerator="cpu", logger=False)
        >>> trainer.early_stopping_callback is patient, patient.wait_count
        (True, 0)
    """

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called first: forgets score and patience of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.wait_count = self.stopped_epoch = 0
            self.best_score = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
