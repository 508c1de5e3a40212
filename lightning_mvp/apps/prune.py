"""``mvp-prune``: prune a backbone for one task and add it to the zoo; ``-m split.task='range(0,24)'`` fills one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_mvp.apps import growth_job
from lightning_mvp.apps.job import Done, command
from lightning_mvp.apps.outcome import Outcome, facts_of_entry
from lightning_mvp.apps.runtime import (
    backbone_of,
    console,
    plain,
    require_weights,
    say_if_random,
    trainer_options,
    training_of,
    without_auto,
)
from lightning_mvp.apps.task_choice import datamodule_of, task_of

if TYPE_CHECKING:
    import lightning as L
    from torch import nn

    from lightning_mvp.backbones.cost import CostModel
    from lightning_mvp.backbones.masks import Masks
    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.splits import TaskSpec
    from lightning_mvp.training.task import TaskModule

# Arguments of a Trainer that `cut_between_rounds` uses, too, because `make_fabric` has them.
HEEDED = ("accelerator", "devices", "strategy", "num_nodes", "precision", "timeout")
# Arguments that only concern display or validation during training: without a Trainer there is neither.
UNSEEN = ("default_root_dir", "enable_progress_bar", "limit_val_batches", "log_every_n_steps", "num_sanity_val_steps")
# Arguments that can have only these values without a Trainer.
FIXED = {"accumulate_grad_batches": 1, "enable_checkpointing": False, "enable_model_summary": False}


def cutting_options(config: DictConfig) -> dict[str, Any]:
    """Arguments of :func:`~lightning_mvp.training.rounds.make_fabric` from the ``trainer`` group.

    Raises:
        ValueError: an argument of the Trainer's that a loop without a Trainer can't follow, named.
    """
    options = {name: value for name, value in trainer_options(config).items() if name not in UNSEEN}
    asked = "once=true" if config.once else "cut_between_rounds=true"
    if "logger" in options:
        raise ValueError(f"Expected logger=none with {asked}, which has no Trainer to log for it.")
    options.pop("gradient_clip_val", None)
    heeded = {name: options.pop(name) for name in HEEDED if name in options}
    for name, value in options.items():
        if name in FIXED and value != FIXED[name]:
            raise ValueError(
                f"Expected trainer.{name} to be {str(FIXED[name]).lower()} with {asked}, but got "
                f"{value!r}. Leave one of them out: a Trainer has it, and zeroes units instead of cutting them."
            )
        if name not in FIXED and value is not None:
            raise ValueError(
                f"Expected no trainer.{name} with {asked}, but got {value!r}: there is no Trainer that "
                "would heed it. Leave one of them out."
            )
    return heeded


@dataclass(frozen=True)
class Plan:
    """How one task is pruned.

    Args:
        task: its name and classes.
        pruning: arguments of :class:`~lightning_mvp.pruning.settings.PruningSettings`.
        training: what else the entry's id is made of.
        name: the entry's id.
    """

    task: TaskSpec
    pruning: dict[str, Any]
    training: dict[str, Any]
    name: str


def plan_of(config: DictConfig, world_size: int) -> Plan:
    """What this job will do."""
    from lightning_mvp.pruning.settings import PruningSettings, entry_config
    from lightning_mvp.training.once import ONE_ROUND, once_config
    from lightning_mvp.zoo.entry import entry_id

    task = task_of(config)
    pruning, training = {**plain(config.pruning), "seed": config.seed}, training_of(config, world_size)
    if config.once:
        pruning, training = {**pruning, **ONE_ROUND}, once_config(config.reconstruct)
    made_of = entry_config(PruningSettings(**pruning), steps_of(config), training)
    return Plan(task, pruning, training, entry_id(task.name, made_of))


def steps_of(config: DictConfig) -> int:
    """Optimizer steps of the job: none with ``once=true``."""
    return 0 if config.once else config.steps


def refuse_early(config: DictConfig) -> None:
    """Refuse missing weights, or a missing zoo where entries begin with its vote."""
    from lightning_mvp.zoo.zoo import ModelZoo

    if config.start == "vote":
        ModelZoo(config.zoo)
    else:
        require_weights(config.weights)


def ready(config: DictConfig, world_size: int) -> Done | None:
    """Refuse what can't work; say so if the entry is there already.

    Raises:
        ValueError: a schedule that doesn't fit, a zoo of another backbone or θ⁰, an entry of that name about other
            classes or other data, an argument of the Trainer's that can't be had without one.
    """
    from lightning_mvp.backbones.create import recipe_of
    from lightning_mvp.fingerprint import to_array
    from lightning_mvp.pruning.schedule import require_time_for
    from lightning_mvp.pruning.settings import PruningSettings
    from lightning_mvp.training.optimizer import require_optim
    from lightning_mvp.training.rounds import make_fabric, require_known_optim
    from lightning_mvp.zoo.new_entry import own_state
    from lightning_mvp.zoo.zoo import ModelZoo

    if not config.once:
        require_optim(**plain(config.optim))
    if config.start == "vote":
        return growth_job.ready(config, world_size)
    if config.once:
        require_once(config)
    elif config.cut_between_rounds:
        require_known_optim(plain(config.optim)["optimizer"], plain(config.optim)["schedule"])
    if config.once or config.cut_between_rounds:
        make_fabric(**without_auto(cutting_options(config)))
    plan = plan_of(config, world_size)
    if not config.once:
        require_time_for(PruningSettings(**plan.pruning).schedule(config.steps), config.steps)
    say_if_random(config, config.weights, "weights")
    backbone, zoo = backbone_of(config, config.weights), Path(config.zoo)
    if not (zoo / "zoo.json").exists():
        return None
    theta0 = {key: to_array(tensor) for key, tensor in own_state(backbone).items()}
    # This refuses a zoo of another backbone or θ⁰, even if it has an entry of this name.
    found = ModelZoo.create(zoo, recipe_of(backbone), theta0, ModelZoo(zoo).group_sizes)
    return growth_job.entry_there(found, plan.name, config, plan.task)


def require_once(config: DictConfig) -> None:
    """Refuse what says something else than ``once=true``."""
    from lightning_mvp.backbones.reconstruct import require_count

    require_count(config.reconstruct)
    if config.cut_between_rounds:
        raise ValueError("Expected once=true or cut_between_rounds=true, but got both. With once there are no rounds.")
    if config.head_init != "ridge":
        raise ValueError(
            f"Expected head_init=ridge with once=true, but got {config.head_init!r}: nothing would train another head."
        )


def cost(config: DictConfig) -> float | None:
    """Seconds of training for this task, from a few steps of it in this process; None where nothing is trained."""
    from lightning_mvp.apps.estimate import training_seconds

    if config.once or config.start == "vote":
        return None
    return training_seconds(config, len(task_of(config).classes))


def module_of(
    config: DictConfig, backbone: nn.Module, datamodule: TaskDataModule, trainer: L.Trainer | L.Fabric
) -> TaskModule:
    """θ⁰ with a head for the task, and what it mimics; called by all ranks, which share what takes long."""
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.training.task import TaskModule

    if config.once:  # which sets the head itself, and trains nothing that could mimic
        return TaskModule.for_task(backbone, datamodule.facts, **plain(config.optim))
    module = TaskModule.for_task(backbone, datamodule.facts, mimic=config.mimic, **plain(config.optim))
    place = Place.of(trainer)
    module.initialise_head(datamodule, config.head_init, device=place)
    module.take_teacher(backbone, datamodule, seed=config.seed, device=place)
    return module


def run(config: DictConfig) -> float:
    """Prune one task, add the entry, return its accuracy on validation images."""
    if config.start == "vote":
        return growth_job.run(config)
    made, first = (_cut if config.cut_between_rounds or config.once else _zero)(config)
    if first:
        console.print(f"{made.facts['entry']}: {made:.1%} on validation images")
    return made


def outcome_of(
    config: DictConfig,
    plan: Plan,
    module: TaskModule,
    data: TaskDataModule,
    trainer: L.Trainer | L.Fabric,
    val_accuracy: float,
    cost: CostModel,
    masks: Masks,
) -> Outcome:
    """What came of it, test images included, which decide nothing; all ranks count them together."""
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.pruning.engine import fractions_kept

    tested = module.accuracy_in(data, "test", device=Place.of(trainer)) if len(data.data.test) else None
    sizes = {"parameters": cost.parameters(masks), "macs": cost.macs(masks)}
    kept = facts_of_entry(plan.name, {"kept": fractions_kept(cost, masks), "val_accuracy": val_accuracy})
    return Outcome(val_accuracy, output=config.zoo, test_accuracy=tested, **sizes, **kept)


def _zero(config: DictConfig) -> tuple[Outcome, bool]:
    """In a Trainer: what came of it, and whether this is the first rank."""
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.callbacks.run_picture import RunPicture
    from lightning_mvp.fitting.fit import EntryFacts, make_trainer

    backbone = backbone_of(config, config.weights)
    trainer = make_trainer(config.steps, network=backbone, **trainer_options(config))
    plan = plan_of(config, trainer.world_size)
    data = datamodule_of(config, plan.task)
    pruning = MVPCallback(
        **plan.pruning, head="head", task=data.facts, zoo=config.zoo, training=plan.training, storage=config.storage
    )
    assert pruning.zoo is not None
    pruning.zoo.decided = True  # by `ready`, once; an entry that another job adds meanwhile stays, and is no failure
    # They come before callbacks that save checkpoints, so that a checkpoint has what a round has done.
    trainer.callbacks[1:1] = [EntryFacts(pruning, data), pruning]  # type: ignore[attr-defined]
    if config.pictures:
        trainer.callbacks.append(RunPicture())  # type: ignore[attr-defined]
    if trainer.world_size > 1:  # as fit would, a little later
        trainer.strategy.setup_environment()
    module = module_of(config, backbone, data, trainer)
    trainer.fit(module, datamodule=data)
    if config.pictures and trainer.is_global_zero:
        say_pictures(data, Path(trainer.default_root_dir))
    accuracy, cost = pruning.info["val_accuracy"], pruning.cost
    return outcome_of(config, plan, module, data, trainer, accuracy, cost, pruning.masks), trainer.is_global_zero


def say_pictures(data: TaskDataModule, folder: Path) -> None:
    """Draw the task's images beside the job's log, and say where they and the run's picture are."""
    from lightning_mvp.pictures import save_beside
    from lightning_mvp.tasks.samples_picture import draw_samples

    save_beside(folder / "images.png", lambda: draw_samples(data))
    if drawn := [str(path) for name in ("pruning.png", "images.png") if (path := folder / name).exists()]:
        console.print(f"drew {' and '.join(drawn)}", markup=False)


def _cut(config: DictConfig) -> tuple[Outcome, bool]:
    """Likewise, without a Trainer."""
    import rich

    from lightning_mvp.callbacks.run_picture import draw_run
    from lightning_mvp.pictures import save_beside
    from lightning_mvp.pruning.settings import PruningSettings
    from lightning_mvp.training.filling import prune_into_zoo
    from lightning_mvp.training.rounds import make_fabric
    from lightning_mvp.zoo.new_entry import ZooTarget

    backbone = backbone_of(config, config.weights)
    fabric = make_fabric(network=backbone, **cutting_options(config))
    fabric.launch()
    plan = plan_of(config, fabric.world_size)
    data = datamodule_of(config, plan.task)
    zoo = ZooTarget(Path(config.zoo), data.facts, config.storage)
    zoo.decided = True
    folder = Path(config.trainer.get("default_root_dir", "."))
    cut = prune_into_zoo(
        module_of(config, backbone, data, fabric),
        data,
        zoo,
        PruningSettings(**plan.pruning),
        steps_of(config),
        fabric,
        training=plan.training,
        clip=config.trainer.get("gradient_clip_val"),
        folder=folder,
        once=config.reconstruct if config.once else None,
    )
    if fabric.is_global_zero and config.trainer.enable_progress_bar:
        rich.print(cut.table())
    accuracy = cut.val_accuracy
    if fabric.is_global_zero and config.pictures:
        if cut.rounds:  # accuracy is measured at the end only, which makes no line
            save_beside(folder / "pruning.png", lambda: draw_run(cut.rounds, {}, config.steps))
        say_pictures(data, folder)
    return outcome_of(config, plan, cut.module, data, fabric, accuracy, cut.cost, cut.masks), fabric.is_global_zero


main = command("prune")

if __name__ == "__main__":
    main()
