"""Your own LightningModule, with two heads and a multi-label loss, over the backbone that a zoo votes for.

    python examples/05_own_module.py

Takes under a minute on one core.
"""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import (
    ImageData,
    MVPCallback,
    TaskDataModule,
    TaskModule,
    TaskSplit,
    load_data,
    split_tasks,
    voted_backbone,
)
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.tasks.preprocessing import preprocess

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
STROKES = ("vertical", "horizontal", "diagonal", "loop")
CHARACTERS = {
    "latin-capital-d": "vertical loop",
    "latin-capital-e": "vertical horizontal",
    "latin-capital-h": "vertical horizontal",
    "latin-capital-n": "vertical diagonal",
    "latin-capital-r": "vertical diagonal loop",
    "latin-x": "diagonal",
    "digit-7": "horizontal diagonal",
    "digit-9": "loop",
    "percent": "diagonal loop",
    "plus": "vertical horizontal",
}


class TwoHeads(L.LightningModule):
    """Which character it is, and which strokes it is made of. Nothing here knows of zoos or votes."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.character = nn.Linear(features, len(CHARACTERS))
        self.strokes = nn.Linear(features, len(STROKES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.character(features), self.strokes(features)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, characters, strokes = batch
        which, has = self(images)
        return F.cross_entropy(which, characters) + F.binary_cross_entropy_with_logits(has, strokes)

    def configure_optimizers(self) -> dict[str, Any]:
        heads = [*self.character.parameters(), *self.strokes.parameters()]  # new, so they learn faster
        optimizer = torch.optim.AdamW([{"params": self.backbone.parameters()}, {"params": heads}])
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.1], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def accuracies(self, images: Tensor, characters: Tensor, strokes: Tensor) -> tuple[float, float]:
        which, has = self.eval()(images)
        self.train()
        right = which.argmax(1) == characters, (has > 0) == (strokes > 0)
        return right[0].float().mean().item(), right[1].float().mean().item()


def train(module: L.LightningModule, data: TaskDataModule | DataLoader, steps: int, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=list(callbacks), **quiet)
    trainer.fit(module, data)


def fill(zoo: Path, characters: ImageData, tasks: TaskSplit) -> None:
    """A tiny zoo, as in 02_vote_new_task.py. A real one is filled by `mvp-prune -m split.task='range(0,24)'`."""
    everything = TaskDataModule(characters, tasks.seen, "pretrain", batch_size=64, augment="none")
    pretraining = TaskModule.for_task(create_backbone(RECIPE), everything.facts, learning_rate=0.2)
    train(pretraining, everything, 150)
    for task in tasks.source:
        data = TaskDataModule(characters, task.classes, task.name)
        backbone = create_backbone(RECIPE)
        backbone.load_state_dict(pretraining.backbone.state_dict())
        module = TaskModule.for_task(backbone, data.facts)
        module.initialise_head(data)
        train(module, data, 40, MVPCallback(pruning_ratio=0.6, rounds=4, head="head", task=data.facts, zoo=zoo))


def main(folder: Path) -> None:
    L.seed_everything(0)
    characters = load_data("glyphs", per_class_train=30, per_class_val=4, per_class_test=25)
    tasks = split_tasks(characters.classes, classes_per_task=5, sources=5, targets=1)
    fill(folder / "zoo", characters, tasks)

    # A task that nobody pruned for, with one label for the first head and several for the second.
    data = TaskDataModule(characters, list(CHARACTERS), "strokes")
    table = torch.tensor([[float(stroke in strokes.split()) for stroke in STROKES] for strokes in CHARACTERS.values()])
    train_part, test_part = (
        (preprocess(images, data.facts), labels, table[labels])
        for images, labels in (data.train_images(), data.test_images())
    )
    loader = DataLoader(TensorDataset(*train_part), batch_size=64, shuffle=True, drop_last=True)

    # What the second head has to tell apart decides who is near: multi-hot labels, so the mean LEEP over the strokes.
    # Given the loader itself, the characters would decide, since they come first in its batches.
    votes = ((images, strokes) for images, _, strokes in loader)
    small, report = voted_backbone(folder / "zoo", votes, neighbours=3)
    rich.print(report)

    module = TwoHeads(small, small.num_features)
    before = module.accuracies(*test_part)
    train(module, loader, 40)
    after = module.accuracies(*test_part)
    rich.print(
        f"After 40 steps: characters {before[0]:.1%} → {after[0]:.1%} right, "
        f"strokes {before[1]:.1%} → {after[1]:.1%} right, on test images."
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
