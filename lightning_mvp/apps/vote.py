"""``mvp-vote``: a small model for a new task from a zoo: rank, vote, merge, cut, fine-tune, write."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_mvp.apps.job import Done, command
from lightning_mvp.apps.runtime import (
    console,
    data_of,
    datamodule_of,
    plain,
    refuse_existing,
    task_of,
    trainer_options,
    training_of,
)

if TYPE_CHECKING:
    import lightning as L

    from lightning_mvp.modules.meta_vote import MetaVoteModule


def settings_of(config: DictConfig, world_size: int) -> dict[str, Any]:
    """What a report says it was made with: a sweep that is run again skips what is equal."""
    settings = {name: plain(config[name]) for name in ("vote", "data", "split")}
    own = {name: config[name] for name in ("zoo", "steps", "seed")}
    return {**settings, **own, "training": training_of(config, world_size)}


def ready(config: DictConfig, world_size: int) -> Done | None:
    """Refuse an output that is there already; in a sweep, skip one that was made with these settings.

    Raises:
        FileExistsError: the output is there, and is another.
        FileNotFoundError: there is no such zoo.
    """
    from lightning_mvp.zoo.zoo import ModelZoo

    output = Path(config.output)
    if HydraConfig.get().mode == RunMode.MULTIRUN and (output / "report.json").exists():
        report = json.loads((output / "report.json").read_text())
        if report.get("settings") == settings_of(config, world_size):
            return Done(f"{output} is there already: skipped", report["val_accuracy"])
    refuse_existing(output)
    ModelZoo(config.zoo)
    return None


def run(config: DictConfig) -> float:
    """Vote and fine-tune; write a checkpoint, safetensors, a recipe and a report; return the validation accuracy.

    That is what a sweeper may optimise. The accuracy on test images is printed and reported, and decides nothing.
    """
    import torch

    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.meta_vote import MetaVoteModule
    from lightning_mvp.zoo.zoo import ModelZoo

    data = data_of(config)
    datamodule = datamodule_of(config, data, task_of(config, data))
    module = MetaVoteModule.from_zoo(
        config.zoo,
        datamodule,
        **plain(config.vote),
        seed=config.seed,
        head_init=config.head_init,
        **plain(config.optim),
    )
    if not module.waits:  # rank 0, which voted; before anything is trained
        for sentence in advise(config, module.report):
            console.print(sentence, highlight=False, markup=False, soft_wrap=sentence.startswith(" "))
    # All ranks must choose one precision, and only the first has a model by now: the dense one is of the same kind.
    recipe = ModelZoo(config.zoo).recipe
    with torch.random.fork_rng(devices=[]):
        network = None if recipe is None else create_backbone(recipe)
    trainer = make_trainer(config.steps, network=network, **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    val_accuracy = module.accuracy_on(*datamodule.val_images())
    test_accuracy = module.accuracy_on(*datamodule.test_images())
    report = {
        **module.report,
        "steps": config.steps,
        "val_accuracy": val_accuracy,
        "test_accuracy": test_accuracy,
        "settings": settings_of(config, trainer.world_size),
    }
    write(Path(config.output), trainer, module, report)
    if trainer.is_global_zero:
        console.print(f"{test_accuracy:.1%} on test images of {datamodule.facts.name} after {config.steps} steps")
        for name, what in (
            ("model.ckpt", "MetaVoteModule.load_from_checkpoint reads it; no zoo is needed"),
            ("model.safetensors", "the weights alone"),
            ("recipe.json", "the architecture, to rebuild the module from timm, and the preprocessing"),
            ("report.json", "neighbours, widths, sizes, seconds"),
        ):
            console.print(f"wrote {Path(config.output) / name}: {what}")
    return val_accuracy


# What of a command line says which task it is and how it is trained, and not how a vote goes.
TASK = re.compile(r"[+~]*(data|split|backbone|optim|trainer|strategy|seed|threads|paths)\b")


def advise(config: DictConfig, report: dict[str, Any]) -> list[str]:
    """What to expect of the vote in sentences, and the command that prunes from scratch instead."""
    from lightning_mvp.voting.trust import Evidence, expectations

    if report["evidence"] is None:
        return []
    removed = 1 - sum(report["widths"].values()) / sum(report["sizes"].values())
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    words = ["mvp-prune", *(word for word in typed if TASK.match(word))]
    if not any(word.startswith("split.kind=") for word in words):
        words.append(f"split.kind={config.split.kind}")
    words += [f"steps={10 * config.steps}", f"pruning.pruning_ratio={removed:.2f}", f"zoo={config.output}-from-scratch"]
    return [
        *expectations(Evidence(**report["evidence"]), config.steps),
        "To prune it from scratch:",
        f"    {shlex.join(words)}",
    ]


def write(output: Path, trainer: L.Trainer, module: MetaVoteModule, report: dict[str, Any]) -> None:
    """All files of a voted model in a folder that appears whole or not at all; called by all ranks."""
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.files import write_json

    partial = output.with_name(f".{output.name}.partial")
    if trainer.is_global_zero:
        shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
        partial.mkdir(parents=True)
    trainer.save_checkpoint(partial / "model.ckpt")  # by all ranks together
    if trainer.is_global_zero:
        save_weights(module.to_torch(), partial / "model.safetensors")
        write_json(partial / "recipe.json", {"recipe": module.hparams["recipe"], "facts": module.facts.to_dict()})
        write_json(partial / "report.json", report)
        refuse_existing(output)
        partial.rename(output)


main = command("vote")

if __name__ == "__main__":
    main()
