"""``mvp-pretrain``: train a backbone on a data set's classes that are not held out, and write its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lightning_mvp.apps.job import command
from lightning_mvp.apps.runtime import (
    backbone_of,
    console,
    data_of,
    datamodule_of,
    plain,
    refuse_existing,
    split_of,
    trainer_options,
)
from lightning_mvp.tasks.splits import TaskSpec

if TYPE_CHECKING:
    from lightning_mvp.tasks.datamodule import TaskDataModule


def ready(config: DictConfig, world_size: int) -> None:
    """Refuse what can't work, and a file that is there already."""
    refuse_existing(Path(config.output))
    split_of(config, data_of(config))


def cost(config: DictConfig) -> float:
    """Seconds of training, from a few steps of it in this process."""
    from lightning_mvp.apps.estimate import training_seconds

    return training_seconds(config, data_for(config))


def data_for(config: DictConfig) -> TaskDataModule:
    """All classes that are not held out, as one task."""
    data = data_of(config)
    return datamodule_of(config, data, TaskSpec("pretrain", split_of(config, data).seen))


def run(config: DictConfig) -> float:
    """Pre-train, write safetensors, return the accuracy on validation images."""
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.task import TaskModule

    output, datamodule = Path(config.output), data_for(config)
    module = TaskModule.for_task(backbone_of(config, config.backbone.weights), datamodule.facts, **plain(config.optim))
    trainer = make_trainer(config.steps, **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.val_images())
    if trainer.is_global_zero:
        save_weights(module.backbone, output)
        console.print(f"{accuracy:.1%} on validation images of {len(datamodule.facts.classes)} classes")
        console.print(f"wrote {output}")
    return accuracy


main = command("pretrain")

if __name__ == "__main__":
    main()
