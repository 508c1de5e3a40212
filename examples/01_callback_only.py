"""Prune the backbone of your own LightningModule: one callback, nothing else changes.

    python examples/01_callback_only.py

Takes about 20 seconds on one core.
"""

import lightning as L
import rich
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import MVPCallback, load_data


class MyModule(L.LightningModule):
    """Nothing here knows of pruning."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=0)
        self.classifier = torch.nn.Linear(512, classes)
        self.example_input_array = torch.zeros(2, 3, 32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    L.seed_everything(0)
    characters = load_data("glyphs", per_class_train=30)
    ten = characters.train.labels < 10
    train = TensorDataset(characters.train.images[ten] / 255, characters.train.labels[ten])

    module = MyModule(classes=10)
    pruning = MVPCallback(pruning_ratio=0.5, rounds=4, head="classifier")
    trainer = L.Trainer(max_steps=60, max_epochs=-1, callbacks=[pruning], accelerator="auto", logger=False)
    trainer.fit(module, DataLoader(train, batch_size=32, shuffle=True))  # prints what was removed

    small = pruning.small_model()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        difference = (small(images) - module.cpu().eval()(images)).abs().max()
    rich.print(f"The small model's outputs differ from the trained module's by at most {difference:.1e}.")


if __name__ == "__main__":
    main()
