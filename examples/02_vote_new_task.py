"""Fill a small zoo, then let it vote a model for a task that nobody pruned for.

    python examples/02_vote_new_task.py

Takes under a minute on one core. A real zoo is filled by `mvp-prune -m split.task='range(0,24)'`.
"""

import tempfile
from pathlib import Path

import lightning as L
import rich

from lightning_mvp import MetaVoteModule, ModelZoo, MVPCallback, TaskDataModule, TaskModule, load_data, split_tasks
from lightning_mvp.backbones.create import create_backbone

RECIPE = {
    "model": "resnet18",
    "arguments": {"layers": [1, 1, 1], "channels": [16, 32, 64], "stem_type": "deep", "stem_width": 8},
    "replace": {
        "conv1": ["Conv2d", {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "padding": 1, "bias": False}],
        "maxpool": ["Identity", {}],
        "layer4": ["Identity", {}],
    },
    "input_size": 32,
    "in_chans": 3,
}


def train(module: L.LightningModule, data: TaskDataModule, steps: int, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=list(callbacks), **quiet)
    trainer.fit(module, datamodule=data)


def main(folder: Path) -> None:
    L.seed_everything(0)
    characters = load_data("glyphs", per_class_train=30, per_class_val=4, per_class_test=25)
    tasks = split_tasks(characters.classes, classes_per_task=5, sources=6, targets=1)

    # θ⁰: one backbone for all tasks. Yours may come from timm: create_backbone(recipe, pretrained=True).
    everything = TaskDataModule(characters, tasks.seen, "pretrain", batch_size=64, augment="none")
    pretraining = TaskModule.for_task(create_backbone(RECIPE), everything.facts, learning_rate=0.2)
    train(pretraining, everything, 150)
    theta0 = pretraining.backbone.state_dict()

    zoo = folder / "zoo"
    for task in tasks.source:
        data = TaskDataModule(characters, task.classes, task.name)
        backbone = create_backbone(RECIPE)
        backbone.load_state_dict(theta0)
        module = TaskModule.for_task(backbone, data.facts)
        module.initialise_head(data)
        train(module, data, 40, MVPCallback(pruning_ratio=0.6, rounds=4, head="head", task=data.facts, zoo=zoo))

    new = tasks.target[0]
    data = TaskDataModule(characters, new.classes, new.name)
    module = MetaVoteModule.from_zoo(ModelZoo(zoo), data, neighbours=3)  # says which tasks voted, and for what
    before = module.accuracy_on(*data.test_images())
    train(module, data, 40)
    after = module.accuracy_on(*data.test_images())
    rich.print(f"{new.name} ({', '.join(new.classes)}): {before:.1%} before the first step, {after:.1%} after 40.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
