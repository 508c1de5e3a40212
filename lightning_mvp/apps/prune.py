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


@hydra.main(version_base="1.3", config_path="pkg://lightning_mvp.conf", config_name="prune")
@for_people
def main(config: DictConfig) -> float | None:
    """Prune one task, add the entry, return its accuracy on validation images (None where it was there already)."""
    from lightning_mvp.backbones.create import recipe_of
    from lightning_mvp.callbacks.guards import require_time_for
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.fingerprint import to_array
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.task import TaskModule
    from lightning_mvp.zoo.entry import entry_id
    from lightning_mvp.zoo.zoo import ModelZoo

    zoo = Path(config.zoo)
    data = data_of(config)
    datamodule = datamodule_of(config, data, task_of(config, data))
    callback = MVPCallback(**plain(config.pruning), head="head", task=datamodule.facts, zoo=zoo, seed=config.seed)
    require_time_for(callback.settings.schedule(config.steps), config.steps)
    name = entry_id(datamodule.facts.name, callback.config(config.steps))
    backbone = backbone_of(config, config.weights)
    if (zoo / "zoo.json").exists():
        theta0 = {key: to_array(tensor) for key, tensor in backbone.state_dict().items()}
        # Refuses a zoo of another backbone or θ⁰, also where it has an entry of this name.
        found = ModelZoo.create(zoo, recipe_of(backbone), theta0, ModelZoo(zoo).group_sizes)
        if name in found:
            there = found[name].facts  # a damaged entry is named, not taken for done
            if there != datamodule.facts.to_dict():
                raise ValueError(
                    f"Expected the entry {name} of the zoo {zoo} to be about this task, but it is about other classes "
                    f"or other data: {', '.join(there['classes'])}. Take another zoo=FOLDER, or a name of your own: "
                    "'split.classes=[…]' with split.task=NAME."
                )
            console.print(f"{name} is in {zoo} already: skipped")
            return None
    module = TaskModule.for_task(backbone, datamodule.facts, **plain(config.optim))
    module.initialise_head(datamodule, config.head_init)
    trainer = make_trainer(config.steps, [callback], **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.val_images())
    if trainer.is_global_zero:
        console.print(f"{name}: {accuracy:.1%} on validation images")
        console.print(f"wrote {name} to the zoo {zoo}, which has {len(ModelZoo(zoo))} entries now")
    return accuracy


if __name__ == "__main__":
    main()
