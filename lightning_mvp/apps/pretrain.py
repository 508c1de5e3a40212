"""``mvp-pretrain``: train a backbone on a data set's classes that are not held out, and write its weights."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lightning_mvp.apps.runtime import (
    backbone_of,
    console,
    data_of,
    datamodule_of,
    for_people,
    plain,
    refuse_existing,
    split_of,
    trainer_options,
)
from lightning_mvp.tasks.splits import TaskSpec


@hydra.main(version_base="1.3", config_path="pkg://lightning_mvp.conf", config_name="pretrain")
@for_people
def main(config: DictConfig) -> float:
    """Pre-train, write safetensors, return the accuracy on validation images."""
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.task import TaskModule

    output = Path(config.output)
    refuse_existing(output)
    data = data_of(config)
    datamodule = datamodule_of(config, data, TaskSpec("pretrain", split_of(config, data).seen))
    module = TaskModule.for_task(backbone_of(config, config.backbone.weights), datamodule.facts, **plain(config.optim))
    trainer = make_trainer(config.steps, **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.val_images())
    if trainer.is_global_zero:
        save_weights(module.backbone, output)
        console.print(f"{accuracy:.1%} on validation images of {len(datamodule.facts.classes)} classes")
        console.print(f"wrote {output}")
    return accuracy


if __name__ == "__main__":
    main()
