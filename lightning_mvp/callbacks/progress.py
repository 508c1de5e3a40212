"""How far pruning is, for people, loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_mvp.callbacks.bar import RoundInBar, above_the_bar
from lightning_mvp.lightning_internals import logged_step
from lightning_mvp.tasks.facts import TaskFacts


def say(trainer: L.Trainer, task: TaskFacts | None, words: str) -> None:
    """Log a line about a task, above a live progress bar."""
    with above_the_bar(trainer):
        rank_zero_info(words if task is None else f"{task.name}: {words}")


def log_progress(trainer: L.Trainer, module: L.LightningModule, round_: int, kept: Mapping[str, float]) -> None:
    """Log the round and the fractions left as ``mvp/round`` and ``mvp/kept_…``.

    Call it at a fit's first step and after each round: in between nothing changes, and logging takes time.

    Args:
        trainer: whose loggers get them, whether or not this step is one of ``log_every_n_steps``.
        module: the module that is trained.
        round_: rounds done.
        kept: fractions of units, parameters and MACs that are left.
    """
    metrics = {"mvp/round": float(round_), **{f"mvp/kept_{what}": fraction for what, fraction in kept.items()}}
    shown = ("mvp/kept_units",) if RoundInBar.serves(trainer) else ("mvp/round", "mvp/kept_units")
    for name, value in metrics.items():
        module.log(name, value, prog_bar=name in shown, logger=False)
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=logged_step(trainer))
