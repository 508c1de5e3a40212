"""``mvp-prune start=vote`` and ``mvp-vote add=true``: each job adds an entry to a zoo that grows by use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from lightning_mvp.apps.job import Done
from lightning_mvp.apps.outcome import Outcome, facts_of_entry, facts_of_vote
from lightning_mvp.apps.runtime import (
    console,
    plain,
    trainer_options,
    training_of,
)
from lightning_mvp.apps.task_choice import datamodule_of, image_preprocessing, selection_of, split_of, task_of
from lightning_mvp.words import counted

if TYPE_CHECKING:
    import lightning as L

    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.splits import TaskSpec
    from lightning_mvp.training.meta_vote import MetaVoteModule
    from lightning_mvp.zoo.entry import ZooEntry
    from lightning_mvp.zoo.zoo import ModelZoo


def module_options(config: DictConfig) -> dict[str, Any]:
    """The options of ``MetaVoteModule.from_zoo`` about training."""
    return {**plain(config.optim), "head_init": config.head_init, "mimic": config.mimic}


@dataclass(frozen=True)
class Order:
    """The wave of each numbered task of a sweep, ``(task - first) // size + 1``.

    Args:
        first: the number of the first task.
        size: how many tasks are in a wave.
        without: the numbers of tasks that no wave waits for.

    Example:
        >>> order = Order(8, 4, (9,))
        >>> [order.wave(task) for task in (8, 11, 12)], order.before(2)
        ([1, 1, 2], [8, 10, 11])
    """

    first: int
    size: int
    without: tuple[int, ...] = ()

    def wave(self, task: int) -> int:
        """The wave of a task."""
        return (task - self.first) // self.size + 1

    def before(self, wave: int) -> list[int]:
        """The tasks of all earlier waves."""
        return [task for task in range(self.first, self.first + (wave - 1) * self.size) if task not in self.without]


def order_of(config: DictConfig) -> Order | None:
    """The order of a sweep's tasks. None where ``growth.wave`` gives the wave, which then waits for nothing.

    Raises:
        ValueError: the task has no number, or one below the first, so that its wave is not known.
    """
    growth = config.growth
    if growth.wave is not None:
        return None
    task = config.split.task
    if config.split.get("classes") is not None or not isinstance(task, int):
        raise ValueError(
            f"Expected growth.wave with start=vote for a task of your own, but got none for {task!r}. Entries of lower "
            "waves may vote for it: `mvp-zoo lineage ZOO` shows the waves that are there."
        )
    if task < growth.first:
        raise ValueError(
            f"Expected `split.task` to be at least growth.first={growth.first}, the first task of the first wave, but "
            f"got {task}. Name a lower growth.first, or the wave itself with growth.wave."
        )
    return Order(growth.first, growth.wave_size, tuple(sorted(growth.without)))


def rule_of(config: DictConfig, world_size: int, wave: int, order: Order | None) -> dict[str, Any]:
    """All settings of this growth, from which, with the zoo's seeds, the entry's id is made."""
    growth = plain(config.growth)
    known = {name: growth[name] for name in ("neighbours", "which", "among", "keep_worse", "vote")}
    waits = None
    if order is not None:
        without = [task for task in order.without if order.wave(task) < wave]
        waits = {"kind": config.split.kind, "first": order.first, "size": order.size, "without": without}
    training = training_of(config, world_size)
    return {**known, "wave": wave, "order": waits, "steps": config.steps, "seed": config.seed, "training": training}


def ready(config: DictConfig, world_size: int) -> Done | None:
    """Refuse what can't work, and put the entry's config into the configuration, for all ranks.

    Returns:
        That the entry is there already, or was refused before; None if it is to be made.

    Raises:
        FileNotFoundError: there is no such zoo.
        ValueError: options that a vote does not use, a zoo without seeds, or entries of earlier waves that are missing.
    """
    from lightning_mvp.fitting.growing import require_growth, require_wave
    from lightning_mvp.zoo.entry import entry_id
    from lightning_mvp.zoo.waves import family_members, growth_config, refusal
    from lightning_mvp.zoo.zoo import ModelZoo

    _require_used(config)
    growth = config.growth
    require_growth(growth.neighbours, growth.which, growth.among)
    order, zoo = order_of(config), ModelZoo(config.zoo)
    wave = require_wave(growth.wave) if order is None else order.wave(config.split.task)
    task = task_of(config)
    family, members = family_members(zoo, growth.family)

    def own(wave: int) -> dict[str, Any]:
        return growth_config(family, members, rule_of(config, world_size, wave, order))

    name = entry_id(task.name, own(wave))
    done = entry_there(zoo, name, config, task)
    if done is not None:
        return done
    refused = refusal(zoo, name)
    if refused is not None:
        return Done(f"{name} was worse than its start, and is not in {zoo.path}: skipped", refused.get("val_accuracy"))
    if order is not None and not config.dry_run:
        earlier = order.before(wave)
        split = split_of(config)
        names = {task: entry_id(split.get(config.split.kind, task).name, own(order.wave(task))) for task in earlier}
        _require_earlier(zoo, wave, {task: name for task, name in names.items() if name not in zoo}, refusal)
    with open_dict(config):
        config.growth.own = own(wave)
    return None


def entry_there(zoo: ModelZoo, name: str, config: DictConfig, task: TaskSpec) -> Done | None:
    """That the job is done, if the zoo has the entry; else None. No image is opened for it.

    Raises:
        ValueError: it is about other classes or other data.
    """
    if name not in zoo:
        return None
    entry = zoo[name]  # raises if the entry is damaged
    if not _is_about(entry, config, task):
        raise ValueError(
            f"Expected the entry {name} of the zoo {zoo.path} to be about this task, but it is about other classes or "
            f"other data: {', '.join(entry.facts['classes'])}. Take another zoo=FOLDER, or a name of your own: "
            "'split.classes=[…]' with split.task=NAME."
        )
    facts = {**facts_of_entry(name, entry.info), "output": str(zoo.path)}
    return Done(f"{name} is in {zoo.path} already: skipped", entry.info.get("val_accuracy"), facts)


def _is_about(entry: ZooEntry, config: DictConfig, task: TaskSpec) -> bool:
    """Whether an entry is about a task, as far as that is known without its images."""
    selection = entry.info.get("data")
    if selection is None:  # an entry from before it was kept
        return entry.facts == datamodule_of(config, task).facts.to_dict()
    seen = image_preprocessing(config) or {}
    about = {"name": task.name, "classes": list(task.classes), **seen}
    return selection == selection_of(config) and {**entry.facts, **about} == entry.facts


def _require_earlier(
    zoo: ModelZoo, wave: int, missing: Mapping[int, str], refusal: Callable[[ModelZoo, str], Any]
) -> None:
    missing = {task: name for task, name in missing.items() if refusal(zoo, name) is None}
    if missing:
        tasks = ",".join(map(str, missing))
        raise ValueError(
            f"Expected all entries of the waves before wave {wave} to be in the zoo {zoo.path}, as this one votes from "
            f"them, but {len(missing)} are not there: {', '.join(list(missing.values())[:5])}. Run the same command "
            f"with split.task={tasks} first, or leave these tasks out with 'growth.without=[{tasks}]'."
        )


def _require_used(config: DictConfig) -> None:
    """Refuse options that a vote does not use, since it has no rounds, and takes its widths from its voters."""
    typed = [word.lstrip("+~") for word in HydraConfig.get().overrides.task]
    for word in typed:
        if word.startswith(("pruning.", "pruning=")):
            raise ValueError(
                f"Expected no `pruning` with start=vote, which has no rounds, but got {word}. Leave it out; widths are "
                "the mean of the voters', or those of '+growth.vote.pruning_ratio=RATIO'."
            )
    for name in ("cut_between_rounds", "once"):
        if config[name]:
            raise ValueError(f"Expected {name}=false with start=vote, which has no rounds. Leave it out.")


def run(config: DictConfig) -> float:
    """Vote, train, add the entry; return its accuracy on validation images.

    Raises:
        ValueError: a voter of the wave is gone.
    """
    from lightning_mvp.agreement import on_rank_zero
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.fitting.growing import start_accuracy, start_of_growth
    from lightning_mvp.training.adding import WorseThanStartError
    from lightning_mvp.training.decision import is_first_process
    from lightning_mvp.zoo.entry import entry_id
    from lightning_mvp.zoo.waves import refuse, wave_voters
    from lightning_mvp.zoo.zoo import ModelZoo

    datamodule = datamodule_of(config, task_of(config))
    zoo, growth, own = ModelZoo(config.zoo), plain(config.growth), plain(config.growth.own)
    voters = wave_voters(zoo, own) if is_first_process() else ()
    chosen = {name: growth[name] for name in ("neighbours", "which", "among")}
    options = {**module_options(config), **growth["vote"]}
    trainer = trainer_for(config)
    place = Place.of(trainer)
    module = start_of_growth(zoo, datamodule, voters, **chosen, seed=config.seed, **options, device=place)
    start = None if module.waits else start_accuracy(module, datamodule, config.head_init, device=place)
    begin = time.perf_counter()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.perf_counter() - begin
    accuracy = module.accuracy_in(datamodule, device=Place.of(trainer))
    tested = module.accuracy_in(datamodule, "test", device=Place.of(trainer)) if len(datamodule.data.test) else None
    name = entry_id(datamodule.facts.name, own)
    info = {"steps": trainer.global_step, "seed": config.seed, "seconds": seconds, "start_val_accuracy": start}
    sentences = [f"{name}: {accuracy:.1%} on validation images"]

    def write() -> None:
        try:
            least = None if growth["keep_worse"] else start
            _add(config, trainer, zoo, module, datamodule, own, least, info, config.storage)
            sentences.append(
                f"wrote {name} to the zoo {config.zoo}, which has {counted(len(zoo), 'entry', 'entries')} now"
            )
        except WorseThanStartError as error:
            refuse(zoo, name, {**info, "val_accuracy": accuracy})
            sentences.append(f"{error} Later waves go on without it.")

    on_rank_zero(trainer, write)
    if trainer.is_global_zero:
        for sentence in sentences:
            console.print(sentence, markup=False, highlight=False)
    facts = {**facts_of_vote(module.report), "val_accuracy": accuracy, "test_accuracy": tested}
    return Outcome(accuracy, entry=name, output=str(zoo.path), **facts)


def trainer_for(config: DictConfig) -> L.Trainer:
    """The Trainer. Its precision is chosen by the dense network, since only rank 0 has the voted one by now.

    The recipe is the zoo's, as ``ready`` has found it, where it has.
    """
    import torch

    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.fitting.fit import make_trainer
    from lightning_mvp.zoo.zoo import ModelZoo

    given = config.get("zoo_recipe")
    recipe = ModelZoo(config.zoo).recipe if given is None else plain(given)
    with torch.random.fork_rng(devices=[]):
        network = None if recipe is None else create_backbone(recipe)
    return make_trainer(config.steps, network=network, **trainer_options(config))


# ``mvp-vote add=true``


def vote_settings(config: DictConfig) -> dict[str, Any]:
    """The vote's settings, but for `merge: mean`, since ids from before there was a choice have no such key."""
    return {name: value for name, value in plain(config.vote).items() if (name, value) != ("merge", "mean")}


def vote_rule(config: DictConfig, world_size: int) -> dict[str, Any]:
    """The settings from which the id of an entry that ``mvp-vote`` adds is made.

    The zoo's other entries are not among them, so that a sweep that is run again skips the entries that it has added.
    """
    own = {name: config[name] for name in ("steps", "seed")}
    return {"vote": vote_settings(config), **own, "training": training_of(config, world_size)}


def ready_to_add(config: DictConfig, world_size: int) -> Done | None:
    """That the job is done, if the entry to add is there already. Its config is put into the configuration.

    An output that does not exist yet is made all the same, from the zoo as it is now. The entry stays as it is.

    Raises:
        ValueError: the zoo has no seeds, or such an entry about another task.
    """
    from lightning_mvp.zoo.entry import entry_id
    from lightning_mvp.zoo.waves import family_members, growth_config
    from lightning_mvp.zoo.zoo import ModelZoo

    zoo, task = ModelZoo(config.zoo), task_of(config)
    own = growth_config(*family_members(zoo, config.vote.get("config")), vote_rule(config, world_size))
    with open_dict(config):
        config.add_as = own
    done = entry_there(zoo, entry_id(task.name, own), config, task)
    wanted = config.overwrite or not Path(config.output).exists() if config.output is not None else config.overwrite
    return None if wanted else done


def may_be_added(report: Mapping[str, Any]) -> bool:
    """Whether a voted model that was made before is, by its report, not worse than its start."""
    return report.get("start_val_accuracy", 0.0) <= report["val_accuracy"]


def start_to_add(
    config: DictConfig, module: MetaVoteModule, datamodule: TaskDataModule, trainer: L.Trainer
) -> dict[str, float]:
    """The start's accuracy for the report; empty on ranks that wait for rank 0's vote."""
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.fitting.growing import start_accuracy

    if module.waits:
        return {}
    return {"start_val_accuracy": start_accuracy(module, datamodule, config.head_init, device=Place.of(trainer))}


def add_trained(
    config: DictConfig,
    trainer: L.Trainer,
    module: MetaVoteModule,
    datamodule: TaskDataModule,
    start: Mapping[str, float],
) -> None:
    """Add the model that ``mvp-vote`` has just made, after its files are written; called by all ranks."""
    from lightning_mvp.agreement import on_rank_zero

    info = {"steps": trainer.global_step, **start}
    on_rank_zero(trainer, lambda: _add_and_say(config, trainer, module, datamodule, info))


def add_made(config: DictConfig, trainer: L.Trainer, datamodule: TaskDataModule, start: Mapping[str, float]) -> None:
    """Add the model that an earlier ``mvp-vote`` has made, from its checkpoint; called by all ranks."""
    from lightning_mvp.training.meta_vote import MetaVoteModule

    if start:
        module = MetaVoteModule.load_from_checkpoint(Path(config.output) / "model.ckpt", weights_only=True)
        _add_and_say(config, trainer, module, datamodule, {"steps": config.steps, **start})


def added_entry(config: DictConfig, datamodule: TaskDataModule) -> str | None:
    """The entry that ``add=true`` was about, if the zoo has it; a rank that can't see the zoo has none."""
    from lightning_mvp.zoo.entry import entry_id

    name = entry_id(datamodule.facts.name, plain(config.add_as))
    return name if Path(config.zoo, "tasks", f"{name}.safetensors").exists() else None


def _add_and_say(
    config: DictConfig, trainer: L.Trainer, module: MetaVoteModule, data: TaskDataModule, info: Mapping[str, Any]
) -> None:
    from lightning_mvp.training.adding import WorseThanStartError
    from lightning_mvp.zoo.entry import entry_id
    from lightning_mvp.zoo.zoo import ModelZoo

    own, zoo = plain(config.add_as), ModelZoo(config.zoo)
    name = entry_id(data.facts.name, own)
    sentence = f"{name} is in the zoo {config.zoo} already, and stays as it is"
    if name not in zoo:
        try:
            _add(config, trainer, zoo, module, data, own, info["start_val_accuracy"], {**info, "seed": config.seed})
            sentence = f"added {name} to the zoo {config.zoo}, which has {counted(len(zoo), 'entry', 'entries')} now"
        except WorseThanStartError as error:
            sentence = str(error)
    console.print(sentence, markup=False, highlight=False)


def _add(
    config: DictConfig,
    trainer: L.Trainer,
    zoo: ModelZoo,
    module: MetaVoteModule,
    data: TaskDataModule,
    own: Mapping[str, Any],
    start: float | None,
    info: Mapping[str, Any],
    storage: Any = "float32",
) -> None:
    """Add an entry whose id is made from ``own``. If the zoo can't be written, it is kept in the job's folder."""
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.training.adding import add_voted

    options = {"storage": storage, "folder": config.trainer.get("default_root_dir", ".")}
    place = Place.of(trainer).alone
    add_voted(zoo, module, data, config=own, start_accuracy=start, info=info, device=place, **options)
