"""``mvp-prune``: prune a backbone for one task and add it to the zoo; ``-m split.task='range(0,24)'`` fills one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lightning_mvp.apps.job import Done, command
from lightning_mvp.apps.runtime import (
    backbone_of,
    console,
    data_of,
    datamodule_of,
    plain,
    task_of,
    trainer_options,
    training_of,
)

if TYPE_CHECKING:
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.tasks.datamodule import TaskDataModule


def pruning_of(config: DictConfig, world_size: int) -> tuple[TaskDataModule, MVPCallback, str]:
    """The task's data, the callback that prunes, and the id of the entry that will come of it."""
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.zoo.entry import entry_id

    data = data_of(config)
    datamodule = datamodule_of(config, data, task_of(config, data))
    callback = MVPCallback(
        **plain(config.pruning),
        head="head",
        task=datamodule.facts,
        zoo=config.zoo,
        seed=config.seed,
        training=training_of(config, world_size),
    )
    assert callback.zoo is not None
    callback.zoo.decided = True  # by `ready`, once; an entry that another job adds meanwhile stays, and is no failure
    return datamodule, callback, entry_id(datamodule.facts.name, callback.config(config.steps))


def ready(config: DictConfig, world_size: int) -> Done | None:
    """Refuse what can't work; say so if the entry is there already.

    Raises:
        ValueError: a schedule that doesn't fit, a zoo of another backbone or θ⁰, an entry of that name about other
            classes or other data.
    """
    from lightning_mvp.backbones.create import recipe_of
    from lightning_mvp.callbacks.guards import require_time_for
    from lightning_mvp.callbacks.zoo_export import own_state
    from lightning_mvp.fingerprint import to_array
    from lightning_mvp.zoo.zoo import ModelZoo

    datamodule, callback, name = pruning_of(config, world_size)
    require_time_for(callback.settings.schedule(config.steps), config.steps)
    backbone, zoo = backbone_of(config, config.weights), Path(config.zoo)
    if not (zoo / "zoo.json").exists():
        return None
    theta0 = {key: to_array(tensor) for key, tensor in own_state(backbone).items()}
    # Refuses a zoo of another backbone or θ⁰, also where it has an entry of this name.
    found = ModelZoo.create(zoo, recipe_of(backbone), theta0, ModelZoo(zoo).group_sizes)
    if name not in found:
        return None
    entry = found[name]  # a damaged entry is named, not taken for done
    if entry.facts != datamodule.facts.to_dict():
        raise ValueError(
            f"Expected the entry {name} of the zoo {zoo} to be about this task, but it is about other classes "
            f"or other data: {', '.join(entry.facts['classes'])}. Take another zoo=FOLDER, or a name of your own: "
            "'split.classes=[…]' with split.task=NAME."
        )
    return Done(f"{name} is in {zoo} already: skipped", entry.info.get("val_accuracy"))


def cost(config: DictConfig) -> float:
    """Seconds of training for this task, from a few steps of it in this process."""
    from lightning_mvp.apps.estimate import training_seconds

    data = data_of(config)
    return training_seconds(config, datamodule_of(config, data, task_of(config, data)))


def run(config: DictConfig) -> float:
    """Prune one task, add the entry, return its accuracy on validation images."""
    from lightning_mvp.modules.fit import EntryFacts, make_trainer
    from lightning_mvp.modules.task import TaskModule
    from lightning_mvp.zoo.zoo import ModelZoo

    trainer = make_trainer(config.steps, **trainer_options(config))
    datamodule, pruning, name = pruning_of(config, trainer.world_size)
    trainer.callbacks += [EntryFacts(pruning, datamodule), pruning]  # type: ignore[attr-defined]
    backbone = backbone_of(config, config.weights)
    module = TaskModule.for_task(backbone, datamodule.facts, **plain(config.optim))
    module.initialise_head(datamodule, config.head_init)
    trainer.fit(module, datamodule=datamodule)
    accuracy = pruning.info["val_accuracy"]
    if trainer.is_global_zero:
        console.print(f"{name}: {accuracy:.1%} on validation images")
        console.print(f"wrote {name} to the zoo {config.zoo}, which has {len(ModelZoo(config.zoo))} entries now")
    return accuracy


main = command("prune")

if __name__ == "__main__":
    main()
