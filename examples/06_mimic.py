"""Mimicking in your own LightningModule: while it is pruned, its features are drawn to those of the dense backbone.

    python examples/06_mimic.py

Takes about 20 seconds on one core.
"""

import copy

import lightning as L
import rich
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import Groups, Masks, MVPCallback, load_data, mimic_loss

WEIGHT = 2.0


class MyModule(L.LightningModule):
    """With a teacher its loss has one more term."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=0)
        self.classifier = torch.nn.Linear(512, classes)
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        self.teacher: tuple[torch.nn.Module, ...] = ()
        self.kept: torch.Tensor | None = None

    def mimic(self, backbone: torch.nn.Module) -> None:
        # In a tuple it is no submodule: no checkpoint, optimizer or DDP wrapper holds it.
        self.teacher = (copy.deepcopy(backbone).eval().requires_grad_(False),)

    def on_units_kept(self, groups: Groups, masks: Masks) -> None:
        """MVPCallback calls this after each round."""
        self.kept = torch.as_tensor(groups.kept_features(masks, 512))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        features = self.backbone(images)
        loss = F.cross_entropy(self.classifier(features), labels)
        for teacher in self.teacher:
            with torch.no_grad():
                wanted = teacher.to(images.device)(images)
            self.mimicked = mimic_loss(features, wanted, self.kept)
            loss = loss + WEIGHT * self.mimicked
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(module: L.LightningModule, loader: DataLoader, steps: int, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **quiet).fit(module, loader)


def main() -> None:
    L.seed_everything(0)
    characters = load_data("glyphs", per_class_train=30)
    ten = characters.train.labels < 10
    data = TensorDataset(characters.train.images[ten] / 255, characters.train.labels[ten])
    loader = DataLoader(data, batch_size=32, shuffle=True)

    module = MyModule(classes=10)
    train(module, loader, 40)  # where you have a pre-trained backbone, this is not needed
    module.mimic(module.backbone)
    train(module, loader, 40, MVPCallback(pruning_ratio=0.5, rounds=4, head="classifier"))

    assert module.kept is not None
    distance = module.mimicked.item()
    rich.print(f"{len(module.kept)} of 512 features are left, {distance:.2f} variances from the teacher's.")


if __name__ == "__main__":
    main()
