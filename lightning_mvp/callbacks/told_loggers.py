"""What loggers are given of pruning besides numbers: its settings, and pictures where they take some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_mvp.lightning_internals import logged_step
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.figures import kept_figure, masks_figure
from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.pruning.settings import PruningSettings


def log_settings(trainer: L.Trainer, pruner: Pruner, schedule: Schedule) -> None:
    """Give each logger the settings, beside the hyper-parameters of the module, as ``mvp/…``."""
    own = {**_told(pruner.settings), "steps_per_round": schedule.steps_per_round}
    own |= {"last_round_at_step": schedule.last_step, "groups_left_whole": ", ".join(pruner.prunable.whole) or "none"}
    settings = {f"mvp/{name}": value if isinstance(value, (int, float)) else str(value) for name, value in own.items()}
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)


def _told(settings: PruningSettings) -> dict[str, Any]:
    """The settings as a zoo would store them; of a criterion that can't be stored the name of its class."""
    try:
        return settings.to_dict()
    except ValueError:
        return {**replace(settings, criterion="taylor").to_dict(), "criterion": type(settings.criterion).__name__}


def takes_figure(logger: Logger) -> Callable[[str, Any, int], None] | None:
    """How a logger takes a figure of matplotlib under a name at a step; None if it takes none.

    TensorBoard's has ``experiment.add_figure``; that of Weights & Biases, and others, ``log_image``; MLflow's has
    ``experiment.log_figure``, which names a file.
    """
    if hasattr(logger, "log_image"):
        return lambda name, figure, step: logger.log_image(name, [figure], step=step)  # type: ignore[attr-defined]
    experiment = getattr(logger, "experiment", None)
    if add := getattr(experiment, "add_figure", None):
        return lambda name, figure, step: add(name, figure, step)
    if log := getattr(experiment, "log_figure", None):
        run = getattr(logger, "run_id", None)
        return lambda name, figure, step: log(run, figure, f"{name}/step-{step:06d}.png")
    return None


@rank_zero_only
def require_figures(loggers: Iterable[Logger]) -> None:
    """Warn where no logger takes the figures that were asked for."""
    if not any(map(takes_figure, loggers)):
        rank_zero_warn(
            "log_figures=True, but no logger of the Trainer takes figures: nothing is drawn. TensorBoardLogger, "
            "WandbLogger and MLFlowLogger do."
        )


@rank_zero_only
def draw_round(trainer: L.Trainer, pruner: Pruner) -> None:
    """Give each logger that takes figures the kept fractions by group, and the masks."""
    for logger in trainer.loggers:
        take = takes_figure(logger)
        if take is not None:
            told = pruner.masks, pruner.round, pruner.settings.rounds
            take("mvp/kept_by_group", kept_figure(*told), logged_step(trainer))
            take("mvp/masks", masks_figure(*told), logged_step(trainer))
