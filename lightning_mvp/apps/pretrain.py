"""``mvp-pretrain``: train a backbone on a data set's classes that are not held out, and write its weights.

With ``pruning.pruning_ratio`` it is pruned mildly on the way: a *parent* whose recipe is written beside its weights. A
zoo whose entries begin with one parent averages better than one of θ⁰'s (benchmarks/cifar100/cnn/report.md).
"""

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
    recipe_path,
    refuse_existing,
    split_of,
    trainer_options,
)
from lightning_mvp.tasks.splits import TaskSpec

if TYPE_CHECKING:
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.tasks.datamodule import TaskDataModule


def ready(config: DictConfig, world_size: int) -> None:
    """Refuse what can't work, and a file that is there already."""
    refuse_existing(Path(config.output))
    split_of(config, data_of(config))
    pruning = pruning_of(config)
    if pruning is not None:
        from lightning_mvp.callbacks.guards import require_time_for

        refuse_existing(recipe_path(config.output))
        require_time_for(pruning.settings.schedule(config.steps), config.steps)


def cost(config: DictConfig) -> float:
    """Seconds of training, from a few steps of it in this process."""
    from lightning_mvp.apps.estimate import training_seconds

    return training_seconds(config, data_for(config))


def data_for(config: DictConfig) -> TaskDataModule:
    """All classes that are not held out, as one task."""
    data = data_of(config)
    return datamodule_of(config, data, TaskSpec("pretrain", split_of(config, data).seen))


def pruning_of(config: DictConfig) -> MVPCallback | None:
    """What prunes a parent while it trains; None where no ratio is given."""
    if config.pruning.pruning_ratio is None:
        return None
    from lightning_mvp.callbacks.mvp import MVPCallback

    return MVPCallback(**plain(config.pruning), head="head", seed=config.seed)


def run(config: DictConfig) -> float:
    """Pre-train, write safetensors, return the accuracy on validation images."""
    from lightning_mvp.backbones.create import recipe_of
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.files import write_json
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.task import TaskModule

    output, datamodule, pruning = Path(config.output), data_for(config), pruning_of(config)
    module = TaskModule.for_task(backbone_of(config, config.backbone.weights), datamodule.facts, **plain(config.optim))
    options = trainer_options(config)
    if pruning is not None:
        options["callbacks"] = [*options.get("callbacks", ()), pruning]
    trainer = make_trainer(config.steps, network=module, **options)
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.val_images())
    if trainer.is_global_zero:
        backbone = module.backbone
        if pruning is not None:
            backbone = pruning.small_model().get_submodule("0")  # its head is another one's
            write_json(recipe_path(output), recipe_of(backbone))
        save_weights(backbone, output)
        console.print(f"{accuracy:.1%} on validation images of {len(datamodule.facts.classes)} classes")
        console.print(f"wrote {output}")
    return accuracy


main = command("pretrain")

if __name__ == "__main__":
    main()
