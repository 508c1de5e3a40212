"""Averaged weights (EMA, SWA by WeightAveraging) beside pruning."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging


def restart_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let weight averaging begin anew from the module as it is: an average across a round would hold removed units."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = callback._average_model if isinstance(callback, WeightAveraging) else None
        if average is not None:
            average.module.load_state_dict(module.state_dict())
            average.n_averaged.zero_()
