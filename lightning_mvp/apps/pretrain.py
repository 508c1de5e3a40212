"""``mvp-pretrain``: train a backbone on a data set's classes that are not held out, and write its weights.

With ``pruning.pruning_ratio`` it is pruned mildly on the way: a *parent* whose recipe is written beside its weights. A
zoo whose entries begin with one parent averages better than one of θ⁰'s (benchmarks/cifar100/cnn/report.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from lightning_mvp.apps.job import command
from lightning_mvp.apps.outcome import Outcome
from lightning_mvp.apps.runtime import (
    backbone_of,
    callbacks_of,
    console,
    plain,
    recipe_path,
    refuse_existing,
    require_weights,
    say_if_random,
    trainer_options,
)
from lightning_mvp.apps.task_choice import data_settings, datamodule_of, seen_classes
from lightning_mvp.tasks.splits import TaskSpec
from lightning_mvp.words import counted

if TYPE_CHECKING:
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.tasks.datamodule import TaskDataModule


SETTINGS = "settings.json"
# Arguments of a Trainer that only concern display, or how long ranks wait for each other.
SHOWS = {"timeout", "default_root_dir", "logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"}


def settings_of(config: DictConfig, world_size: int) -> dict[str, Any]:
    """What must be the same for a training to go on exactly."""
    sections = {name: plain(config[name]) for name in ("split", "backbone", "pruning", "optim", "trainer")}
    sections["data"] = data_settings(config)
    sections["trainer"] = {name: value for name, value in sections["trainer"].items() if name not in SHOWS}
    # Earlier versions had no `mimic` and no `callbacks`. They are stored only if they are used. So a training that an
    # earlier version began has the same settings as now, and can be resumed.
    asked = {name: value for name, value in (("mimic", config.mimic), ("callbacks", callbacks_of(config))) if value}
    return {**sections, **asked, "steps": config.steps, "seed": config.seed, "world_size": world_size}


def training_folder(output: Path) -> Path:
    """Where a training that is not done yet has its checkpoint and settings; it is gone once the weights are written.

    Example:
        >>> training_folder(Path("backbones/parent.safetensors")).as_posix()
        'backbones/.parent.safetensors.training'
    """
    return output.with_name(f".{output.name}.training")


def require_same_training(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a training of these settings was begun in a folder.

    Raises:
        ValueError: one of other settings was; the message says which.
    """
    if not (folder / SETTINGS).exists():
        return False
    begun, now = (_flat(each) for each in (json.loads((folder / SETTINGS).read_text(encoding="utf-8")), settings))
    differing = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
    if differing:
        told = ", ".join(f"{key}={now.get(key)}, there {begun.get(key)}" for key in differing[:5])
        raise ValueError(
            f"Expected the settings of the training that was stopped and can go on in {folder}, but got {told}. Go on "
            f"with the same settings, name another output, or remove {folder} to start anew."
        )
    return True


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: each for name, part in value.items() for key, each in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def refuse_early(config: DictConfig) -> None:
    """Refuse an output that is there already, and weights that are not."""
    if not training_folder(Path(config.output)).exists():  # else it was killed after it was done: `ready` tidies up
        refuse_existing(Path(config.output))
    require_weights(config.backbone.weights)


def ready(config: DictConfig, world_size: int) -> None:
    """Refuse what can't work, a file that is there already, and a stopped training of other settings.

    Whoever runs the job finds in the configuration where to go on: not every rank may see the folder alike.
    """
    from lightning_mvp.callbacks.resumable import Resumable
    from lightning_mvp.training.optimizer import require_optim

    require_optim(**plain(config.optim))
    output = Path(config.output)
    if output.exists():  # killed after it was done
        shutil.rmtree(training_folder(output), ignore_errors=True)
    refuse_existing(output)
    begun = require_same_training(training_folder(output), settings_of(config, world_size))
    with open_dict(config):
        config.go_on_from = Resumable(training_folder(output), config.checkpoint_seconds).checkpoint
    seen_classes(config)
    if config.mimic and config.pruning.pruning_ratio is None:
        raise ValueError(
            f"Expected `mimic` to be 0 for a backbone that is not pruned, but got {config.mimic}: there is nothing "
            "that it could mimic. Give pruning.pruning_ratio, too, to make a parent that mimics the weights it starts "
            "from."
        )
    if config.pruning.pruning_ratio is not None:
        from lightning_mvp.pruning.schedule import require_time_for
        from lightning_mvp.pruning.settings import PruningSettings

        if not begun:  # else it is this training's, which was stopped between recipe and weights
            refuse_existing(recipe_path(output))
        say_if_random(config, config.backbone.weights, "backbone.weights")
        require_time_for(PruningSettings(**plain(config.pruning)).schedule(config.steps), config.steps)


def cost(config: DictConfig) -> float:
    """Seconds of training, from a few steps of it in this process."""
    from lightning_mvp.apps.estimate import training_seconds

    return training_seconds(config, len(seen_classes(config)))


def data_for(config: DictConfig) -> TaskDataModule:
    """All classes that are not held out, as one task."""
    return datamodule_of(config, TaskSpec("pretrain", seen_classes(config)), trained_here=True)


def pruning_of(config: DictConfig) -> MVPCallback | None:
    """What prunes a parent while it trains; None where no ratio is given."""
    if config.pruning.pruning_ratio is None:
        return None
    from lightning_mvp.callbacks.mvp import MVPCallback

    return MVPCallback(**plain(config.pruning), head="head", seed=config.seed)


def run(config: DictConfig) -> float:
    """Pre-train, write safetensors, return the accuracy on validation images; goes on where it was stopped."""
    from lightning_mvp.backbones.create import recipe_of
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.callbacks.resumable import Resumable
    from lightning_mvp.files import write_json
    from lightning_mvp.fitting.fit import make_trainer
    from lightning_mvp.training.task import TaskModule
    from lightning_mvp.zoo.seen_by import preprocessing_of

    output, datamodule, pruning = Path(config.output), data_for(config), pruning_of(config)
    backbone = backbone_of(config, config.backbone.weights)
    module = TaskModule.for_task(backbone, datamodule.facts, mimic=config.mimic, **plain(config.optim))
    options = trainer_options(config)
    folder = training_folder(output)
    resumable = Resumable(folder, config.checkpoint_seconds)
    if pruning is not None:
        options["callbacks"] = [*options.get("callbacks", ()), pruning]
    trainer = make_trainer(config.steps, network=module, **options)
    module.take_teacher(backbone, datamodule, seed=config.seed, device=Place.of(trainer))
    trainer.callbacks.append(resumable)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        write_json(folder / SETTINGS, settings_of(config, trainer.world_size), overwrite=True)
    go_on_from = config.get("go_on_from", resumable.checkpoint)
    with resumable:
        trainer.fit(module, datamodule=datamodule, ckpt_path=go_on_from, weights_only=True)
    accuracy = module.accuracy_in(datamodule, device=Place.of(trainer))
    if trainer.is_global_zero:
        trained = module.backbone
        if pruning is not None:
            trained = pruning.small_model().get_submodule("0")  # its head is another one's
            write_json(recipe_path(output), recipe_of(trained), overwrite=True)
        save_weights(trained, output, preprocessing=preprocessing_of(datamodule.facts.to_dict()))
        shutil.rmtree(folder)
        console.print(
            f"{accuracy:.1%} on validation images of {counted(len(datamodule.facts.classes), 'class', 'classes')}"
        )
        console.print(f"wrote {output}")
    return Outcome(accuracy, output=str(output), val_accuracy=accuracy)


main = command("pretrain")

if __name__ == "__main__":
    main()
