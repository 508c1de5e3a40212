"""How long a job would take: a few of its own steps, timed in this process."""

from __future__ import annotations

import json
import statistics

from omegaconf import DictConfig

from lightning_mvp.apps.runtime import plain
from lightning_mvp.apps.task_choice import image_preprocessing

TIMED_STEPS = 6

_seconds_a_step: dict[str, float] = {}


def training_seconds(config: DictConfig, classes: int) -> float:
    """Seconds that ``config.steps`` steps of one process take here; steps that are alike are timed once in a process.

    Random images of the task's shape are timed, so that none is opened. What comes before and after training (groups,
    head, evaluation) is not in it, and neither is opening images, nor what ranks tell each other.

    Args:
        config: of the command.
        classes: how many the task has.
    """
    seen = image_preprocessing(config) or {}
    recipe = plain(config.backbone.recipe)
    size = seen.get("input_size") or config.data.get("image_size") or recipe.get("input_size", 224)
    shape = (config.data.batch_size, recipe.get("in_chans", 3), size, size)
    trainer = [config.trainer[name] for name in ("accelerator", "precision", "accumulate_grad_batches")]
    key = json.dumps([recipe, trainer, shape], sort_keys=True)
    if key not in _seconds_a_step:
        _seconds_a_step[key] = _time_steps(config, shape, classes)
    return config.steps * _seconds_a_step[key]


def _time_steps(config: DictConfig, shape: tuple[int, int, int, int], classes: int) -> float:
    import torch

    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.fitting.fit import StepSeconds, fit_quietly
    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.partition import ImageData, Part
    from lightning_mvp.training.task import TaskModule

    batch, *of_image = shape
    images = torch.randint(256, (max(batch, 2), *of_image), dtype=torch.uint8)
    part = Part(images, torch.arange(len(images)) % classes)
    names = tuple(f"class-{label}" for label in range(classes))
    data = ImageData("random", names, part, part, part)
    datamodule = TaskDataModule(data, names[: len(images)], batch_size=batch, augment="none")
    module = TaskModule.for_task(create_backbone(plain(config.backbone.recipe)), datamodule.facts)
    timer = StepSeconds()
    accelerator = {"accelerator": config.trainer.accelerator, "precision": config.trainer.precision}
    fit_quietly(module, datamodule, TIMED_STEPS, [timer], **accelerator)
    return statistics.median(timer.seconds) * config.trainer.accumulate_grad_batches
