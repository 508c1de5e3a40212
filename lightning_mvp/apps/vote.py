"""``mvp-vote``: a small model for a new task from a zoo: rank, vote, merge, cut, fine-tune, write."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from lightning_mvp.apps import growth_job
from lightning_mvp.apps.job import Done, command
from lightning_mvp.apps.outcome import Outcome, facts_of_vote
from lightning_mvp.apps.runtime import (
    console,
    own_backbone,
    plain,
    training_of,
)
from lightning_mvp.apps.scratch import hydra_value, scratch_words
from lightning_mvp.apps.task_choice import data_settings, datamodule_of, task_of
from lightning_mvp.folders import put_in_place, require_free

if TYPE_CHECKING:
    import lightning as L

    from lightning_mvp.training.meta_vote import MetaVoteModule


# See benchmarks/cifar100/grown/report.md.
MIMIC = (
    "On CIFAR-100 mimic=2 gave a vote of independent entries 1.4 points more [+0.9, +1.8], and training one narrow net "
    "on from task to task did better still: docs/zoo.md."
)
FILES = {
    "model.ckpt": "MetaVoteModule.load_from_checkpoint reads it; no zoo is needed",
    "model.safetensors": "the weights alone",
    "recipe.json": "the architecture, to rebuild the module from timm, and the preprocessing",
    "report.json": "neighbours, widths, sizes, seconds",
    "neighbours.png": "who voted: scores, shares of the votes, shared classes",
}


def settings_of(config: DictConfig, world_size: int) -> dict[str, Any]:
    """What decides a vote's result, the zoo's entries included. A command that is run again skips equal results."""
    from lightning_mvp.zoo.catalogue import content_stamp
    from lightning_mvp.zoo.zoo import ModelZoo

    settings = {"vote": growth_job.vote_settings(config), "data": data_settings(config), "split": plain(config.split)}
    for option in ("reconstruct", "best_of"):  # folders of votes from before there were such options stay theirs
        if not settings["vote"].get(option):
            settings["vote"].pop(option, None)
    own = {name: config[name] for name in ("zoo", "steps", "seed")}
    voters = content_stamp(ModelZoo(config.zoo))
    return {**settings, **own, "voters": voters, "training": training_of(config, world_size)}


def output_of(config: DictConfig, settings: dict[str, Any]) -> Path:
    """The folder that is asked for, or one that is named by data set, task and a hash of what decides the result."""
    from lightning_mvp.zoo.entry import config_hash

    if config.output is not None:
        return Path(config.output)
    data = HydraConfig.get().runtime.choices["data"]
    name = f"{data}-{config.split.kind}-{config.split.task}-{config_hash(settings)}"
    return Path(config.paths.root, "voted", name)


def refuse_early(config: DictConfig) -> None:
    """Refuse a zoo that is not there."""
    from lightning_mvp.zoo.zoo import ModelZoo

    ModelZoo(config.zoo)


def ready(config: DictConfig, world_size: int) -> Done | None:
    """Skip an output that was made with these settings; refuse another one that is there, and a task that isn't.

    Whoever runs the job finds in the configuration where to write, and how this task would be pruned from scratch.

    Raises:
        FileExistsError: the output is there, and is another.
        FileNotFoundError: there is no such zoo.
        ValueError: there is no such task.
    """
    from lightning_mvp.training.optimizer import require_optim
    from lightning_mvp.zoo.zoo import ModelZoo

    require_optim(**plain(config.optim))
    zoo, settings = ModelZoo(config.zoo), settings_of(config, world_size)
    own_backbone(config)
    done = growth_job.ready_to_add(config, world_size) if config.add else None
    if done is not None:
        return done
    output = output_of(config, settings)
    report = made_before(config, output, settings)
    if report is not None and not (config.add and growth_job.may_be_added(report)):
        facts = {**facts_of_vote(report), "output": str(output)}
        return Done(f"{output} is there already: skipped", report["val_accuracy"], facts)
    if report is None:
        require_free(output, FILES, config.overwrite)
    task_of(config)
    with open_dict(config):
        config.output = str(output)
        config.made_before = None if report is None else report["val_accuracy"]
        config.zoo_recipe = zoo.recipe
        config.settings = settings  # of the zoo as it votes now, whoever adds to it meanwhile
        # Without a recipe of timm's no command prunes it.
        config.from_scratch = None if config.backbone.target else scratch_words(config, zoo.recipe)
    return None


def made_before(config: DictConfig, output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an output that was made with these settings, unless it is to be overwritten."""
    if config.overwrite or not (output / "report.json").exists():
        return None
    report = json.loads((output / "report.json").read_text())
    return report if report.get("settings") == settings else None


def run(config: DictConfig) -> float:
    """Vote and fine-tune; write a checkpoint, safetensors, a recipe and a report; return the validation accuracy.

    That is what a sweeper may optimise. The accuracy on test images is printed and reported, and decides nothing.
    """
    from lightning_mvp.backbones.passes import Place
    from lightning_mvp.training.meta_vote import MetaVoteModule

    backbone = own_backbone(config)
    datamodule = datamodule_of(config, task_of(config))
    trainer = growth_job.trainer_for(config)
    module = MetaVoteModule.from_zoo(
        config.zoo,
        datamodule,
        **plain(config.vote),
        seed=config.seed,
        **growth_job.module_options(config),
        backbone=backbone,
        device=Place.of(trainer),
    )
    if not module.waits:  # rank 0, which voted; before anything is trained
        for sentence in advise(config, module.report):
            console.print(sentence, highlight=False, markup=False, soft_wrap=sentence.startswith(" "))
    start = growth_job.start_to_add(config, module, datamodule, trainer) if config.add else {}
    # All but added: the job was stopped in between, or somebody decides only now. Not every rank may see the folder.
    if config.get("made_before") is not None:
        growth_job.add_made(config, trainer, datamodule, start)
        return float(config.made_before)
    trainer.fit(module, datamodule=datamodule)
    place = Place.of(trainer)
    val_accuracy, test_accuracy = (module.accuracy_in(datamodule, part, device=place) for part in ("val", "test"))
    report = {
        **module.report,
        **start,
        "steps": config.steps,
        "val_accuracy": val_accuracy,
        "test_accuracy": test_accuracy,
        # As `ready` found them; whoever calls this alone has nobody else who adds to the zoo meanwhile.
        "settings": plain(config.settings) if "settings" in config else settings_of(config, trainer.world_size),
    }
    write(config, trainer, module, report)
    if trainer.is_global_zero:
        console.print(f"{test_accuracy:.1%} on test images of {datamodule.facts.name} after {config.steps} steps")
        for name, what in FILES.items():
            if Path(config.output, name).exists():  # a picture that can't be drawn is left out
                console.print(f"wrote {Path(config.output) / name}: {what}")
    if config.add:
        growth_job.add_trained(config, trainer, module, datamodule, start)
    entry = growth_job.added_entry(config, datamodule) if config.add else None
    return Outcome(val_accuracy, entry=entry, output=config.output, **facts_of_vote(report))


def advise(config: DictConfig, report: dict[str, Any]) -> list[str]:
    """Sentences about what to expect of the vote, and the command that prunes from scratch instead."""
    from lightning_mvp.voting.trust import Evidence, expectations

    if report["evidence"] is None:
        return []
    sentences = expectations(Evidence(**report["evidence"]), config.steps) + ([] if config.mimic else [MIMIC])
    command_words = config.get("from_scratch")
    if command_words is None:  # `run` was called by a program, not by a command
        return sentences
    removed = 1 - sum(report["widths"].values()) / sum(report["sizes"].values())
    zoo = hydra_value(f"{config.output}-from-scratch")
    ratio = min(max(removed, 0.01), 0.99)  # as far as two digits go
    words = [f"steps={10 * config.steps}", f"pruning.pruning_ratio={ratio:.2f}", f"zoo={zoo}"]
    return [*sentences, "To prune it from scratch:", f"    {shlex.join([*command_words, *words])}"]


def write(config: DictConfig, trainer: L.Trainer, module: MetaVoteModule, report: dict[str, Any]) -> None:
    """All files of a voted model in a folder that appears whole or not at all; called by all ranks."""
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.files import write_json
    from lightning_mvp.pictures import save_beside
    from lightning_mvp.voting.neighbours_picture import draw_neighbours

    output = Path(config.output)
    partial = output.with_name(f".{output.name}.partial")
    if trainer.is_global_zero:
        shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
        partial.mkdir(parents=True)
    trainer.save_checkpoint(partial / "model.ckpt")  # by all ranks together
    if trainer.is_global_zero:
        save_weights(module.to_torch(), partial / "model.safetensors")
        write_json(partial / "recipe.json", {"recipe": module.hparams["recipe"], "facts": module.facts.to_dict()})
        write_json(partial / "report.json", report)
        save_beside(partial / "neighbours.png", lambda: draw_neighbours(report, module.facts.name))
        put_in_place(partial, output, FILES, config.overwrite)


main = command("vote")

if __name__ == "__main__":
    main()
