"""How far pruning is, for progress bar, loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

from lightning_mvp.lightning_internals import logged_step


def log_progress(trainer: L.Trainer, module: L.LightningModule, round_: int, kept: Mapping[str, float]) -> None:
    """Log the round and the fractions left as ``mvp/round`` and ``mvp/kept_…``.

    Call it at the first step and after each round: in between nothing changes, and logging takes time.

    Args:
        trainer: whose loggers get them, whether or not this step is one of ``log_every_n_steps``.
        module: the module that is trained.
        round_: rounds done.
        kept: fractions of units, parameters and MACs that are left.
    """
    metrics = {"mvp/round": float(round_), **{f"mvp/kept_{what}": fraction for what, fraction in kept.items()}}
    for name, value in metrics.items():
        module.log(name, value, prog_bar=name in ("mvp/round", "mvp/kept_units"), logger=False)
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=logged_step(trainer))
