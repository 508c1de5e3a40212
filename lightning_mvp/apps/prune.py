"""``mvp-prune``: prune a backbone for one task and add it to the zoo; ``-m split.task='range(0,24)'`` fills one."""

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
    task_of,
    trainer_options,
)
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.modules.fit import make_trainer
from lightning_mvp.modules.task import TaskModule
from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.zoo import ModelZoo


@hydra.main(version_base="1.3", config_path="pkg://lightning_mvp.conf", config_name="prune")
@for_people
def main(config: DictConfig) -> float | None:
    """Prune one task, add the entry, return its accuracy on validation images (None where it was there already)."""
    zoo = Path(config.zoo)
    data = data_of(config)
    datamodule = datamodule_of(config, data, task_of(config, data))
    callback = MVPCallback(**plain(config.pruning), head="head", task=datamodule.facts, zoo=zoo, seed=config.seed)
    name = entry_id(datamodule.facts.name, callback.config(config.steps))
    if (zoo / "zoo.json").exists() and name in ModelZoo(zoo):
        console.print(f"{name} is in {zoo} already: skipped")
        return None
    module = TaskModule.for_task(backbone_of(config, config.weights), datamodule.facts, **plain(config.optim))
    module.initialise_head(datamodule, config.head_init)
    trainer = make_trainer(config.steps, [callback], **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.val_images())
    console.print(f"{name}: {accuracy:.1%} on validation images")
    console.print(f"wrote {name} to the zoo {zoo}, which has {len(ModelZoo(zoo))} entries now")
    return accuracy


if __name__ == "__main__":
    main()
