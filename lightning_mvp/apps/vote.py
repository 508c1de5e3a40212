"""``mvp-vote``: a small model for a new task from a zoo: rank, vote, merge, cut, fine-tune, write."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lightning_mvp.apps.runtime import (
    console,
    data_of,
    datamodule_of,
    for_people,
    plain,
    refuse_existing,
    task_of,
    trainer_options,
)


@hydra.main(version_base="1.3", config_path="pkg://lightning_mvp.conf", config_name="vote")
@for_people
def main(config: DictConfig) -> float:
    """Vote and fine-tune; write a checkpoint, safetensors, a recipe and a report; return the test accuracy."""
    from lightning_mvp.backbones.weights import save_weights
    from lightning_mvp.files import write_json
    from lightning_mvp.modules.fit import make_trainer
    from lightning_mvp.modules.meta_vote import MetaVoteModule

    output = Path(config.output)
    refuse_existing(output)
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
    trainer = make_trainer(config.steps, **trainer_options(config))
    trainer.fit(module, datamodule=datamodule)
    accuracy = module.accuracy_on(*datamodule.test_images())
    output.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(output / "model.ckpt")  # by all ranks together
    if not trainer.is_global_zero:
        return accuracy
    save_weights(module.to_torch(), output / "model.safetensors")
    write_json(output / "recipe.json", {"recipe": module.hparams["recipe"], "facts": module.facts.to_dict()})
    write_json(output / "report.json", {**module.report, "steps": config.steps, "test_accuracy": accuracy})
    console.print(f"{accuracy:.1%} on test images of {datamodule.facts.name} after {config.steps} steps")
    for name, what in (
        ("model.ckpt", "MetaVoteModule.load_from_checkpoint reads it; no zoo is needed"),
        ("model.safetensors", "the weights alone"),
        ("recipe.json", "the architecture, to rebuild the module from timm, and the preprocessing"),
        ("report.json", "neighbours, widths, sizes, seconds"),
    ):
        console.print(f"wrote {output / name}: {what}")
    return accuracy


if __name__ == "__main__":
    main()
