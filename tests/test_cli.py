"""LightningCLI makes everything from plain values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_mvp import MaskExport, Masks, ModelZoo, MVPCallback, TaskDataModule, TaskModule

from .callbacks.user import RECIPE

CLASSES = ["latin-capital-a", "latin-capital-b", "latin-capital-d"]
FACTS = {"name": "letters", "classes": CLASSES, "input_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}


def config(folder: Path) -> dict[str, object]:
    pruning = {
        "criterion": "taylor",
        "pruning_ratio": 0.5,
        "rounds": 2,
        "steps_per_round": 2,
        "head": "head",
        "example_input": [2, 3, 16, 16],
        "task": FACTS,
        "zoo": str(folder / "zoo"),
    }
    best = {"dirpath": str(folder / "checkpoints"), "monitor": "train_accuracy", "mode": "max"}
    callbacks = [
        {"class_path": "lightning_mvp.MVPCallback", "init_args": pruning},
        {"class_path": "lightning_mvp.MaskExport", "init_args": {"path": str(folder / "masks.safetensors")}},
        {"class_path": "lightning_mvp.PrunedCheckpoint", "init_args": best},
        {"class_path": "lightning_mvp.PrunedEarlyStopping", "init_args": {"monitor": "train_loss", "patience": 50}},
    ]
    options = {"characters": "ABD", "per_class_train": 8, "image_size": 16}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 5,
            "max_steps": 10,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": callbacks,
        },
        "model": {"recipe": RECIPE, "facts": FACTS, "learning_rate": 0.05, "optimizer": "adamw"},
        "data": {"data": "glyphs", "classes": CLASSES, "name": "letters", "batch_size": 8, "data_options": options},
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_yaml_file_prunes_a_task_into_a_zoo(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(tmp_path)))
    cli = LightningCLI(
        TaskModule,
        TaskDataModule,
        args=["fit", "--config", str(tmp_path / "config.yaml")],
        save_config_callback=None,
        parser_kwargs={"parser_mode": "yaml"},
    )
    pruning = next(callback for callback in cli.trainer.callbacks if isinstance(callback, MVPCallback))
    assert pruning.example_input is not None
    assert [tuple(tensor.shape) for tensor in pruning.example_input] == [(2, 3, 16, 16)]
    assert any(isinstance(callback, MaskExport) for callback in cli.trainer.callbacks)
    assert Masks.load(tmp_path / "masks.safetensors") == pruning.masks
    assert len(ModelZoo(tmp_path / "zoo")) == 1
    (best,) = (tmp_path / "checkpoints").glob("*.ckpt")
    again = TaskModule.load_from_checkpoint(best, weights_only=True)
    assert isinstance(again.head, torch.nn.Linear)
