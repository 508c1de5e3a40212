"""How long a job would take: a few of its own steps, timed in this process."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lightning_mvp.apps.runtime import plain

if TYPE_CHECKING:
    from lightning_mvp.tasks.datamodule import TaskDataModule

TIMED_STEPS = 6

_seconds_a_step: dict[str, float] = {}


def training_seconds(config: DictConfig, datamodule: TaskDataModule) -> float:
    """Seconds that ``config.steps`` steps of one process take here; steps that are alike are timed once in a process.

    What comes before and after training (groups, head, evaluation) is not in it, and neither is what ranks tell each
    other.
    """
    trainer = [config.trainer[name] for name in ("accelerator", "precision", "accumulate_grad_batches")]
    data = [datamodule.batch_size, datamodule.facts.input_size]
    key = json.dumps([plain(config.backbone.recipe), trainer, data], sort_keys=True)
    if key not in _seconds_a_step:
        _seconds_a_step[key] = _time_steps(config, datamodule)
    return config.steps * _seconds_a_step[key]


def _time_steps(config: DictConfig, datamodule: TaskDataModule) -> float:
    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.fitting.fit import StepSeconds, fit_quietly
    from lightning_mvp.training.task import TaskModule

    module = TaskModule.for_task(create_backbone(plain(config.backbone.recipe)), datamodule.facts)
    timer = StepSeconds()
    accelerator = {"accelerator": config.trainer.accelerator, "precision": config.trainer.precision}
    fit_quietly(module, datamodule, TIMED_STEPS, [timer], **accelerator)
    return statistics.median(timer.seconds) * config.trainer.accumulate_grad_batches
