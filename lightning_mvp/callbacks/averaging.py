"""Averaged weights (EMA, SWA by WeightAveraging) beside pruning."""

from __future__ import annotations

import lightning as L
import torch

from lightning_mvp.lightning_internals import averaged_models


def restart_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let weight averaging begin anew from the module as it is: an average across a round would hold removed units."""
    for average in averaged_models(trainer):
        average.module.load_state_dict(module.state_dict())
        average.n_averaged.zero_()


def holds_average(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether the module's weights are an average that :func:`restart_averages` began anew at each round."""
    own = [parameter.detach().cpu() for parameter in module.parameters()]
    return any(
        all(torch.equal(one, other.cpu()) for one, other in zip(own, average.module.parameters(), strict=True))
        for average in averaged_models(trainer)
    )
