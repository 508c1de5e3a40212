"""Averaged weights (EMA, SWA by WeightAveraging) beside pruning."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging


def _averages(trainer: L.Trainer) -> Iterator[torch.optim.swa_utils.AveragedModel]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback._average_model


def restart_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let weight averaging begin anew from the module as it is: an average across a round would hold removed units."""
    for average in _averages(trainer):
        average.module.load_state_dict(module.state_dict())
        average.n_averaged.zero_()


def holds_average(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether the module's weights are an average that :func:`restart_averages` began anew at each round."""
    own = [parameter.detach().cpu() for parameter in module.parameters()]
    return any(
        all(torch.equal(one, other.cpu()) for one, other in zip(own, average.module.parameters(), strict=True))
        for average in _averages(trainer)
    )
