"""A plain LightningModule of a user, who knows nothing of pruning, and small random data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import MVPCallback, TaskFacts, create_backbone
from lightning_mvp.backbones import dead_entries
from lightning_mvp.pruning.zeros import masks_from_zeros
from lightning_mvp.tasks.partition import Part

RECIPE: dict[str, Any] = {
    "model": "resnet18",
    "arguments": {"layers": [1, 1, 1], "channels": [8, 12, 16], "stem_type": "deep", "stem_width": 4},
    "replace": {
        "conv1": ["Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False}],
        "maxpool": ["Identity", {}],
        "layer4": ["Identity", {}],
    },
    "input_size": 16,
    "in_chans": 3,
}
VIT_RECIPE: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "arguments": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 6},
    "input_size": 16,
    "in_chans": 3,
}
CLASSES = ("red", "green", "blue")
FACTS = TaskFacts("colours", CLASSES, 16, (0.5,) * 3, (0.25,) * 3)
EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))


class UserModule(L.LightningModule):
    """One's own loss and optimizer around any backbone; ``spoil_at`` makes the loss of one batch NaN."""

    def __init__(
        self,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
        optimizer: str = "sgd",
        spoil_at: int | None = None,
        interrupt_at: int | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = create_backbone(RECIPE) if backbone is None else backbone
        with torch.no_grad():
            features = self.net.eval()(EXAMPLE).shape[1]
        self.net.train()
        self.classifier = nn.Linear(features, len(CLASSES)) if head is None else head
        self.optimizer, self.spoil_at, self.interrupt_at = optimizer, spoil_at, interrupt_at

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.net(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx == self.interrupt_at:
            raise KeyboardInterrupt
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)
        return loss * torch.nan if batch_idx == self.spoil_at else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def callback(**options: Any) -> MVPCallback:
    """Half of the units go in three rounds, the last after step 6."""
    defaults = {"pruning_ratio": 0.5, "rounds": 3, "steps_per_round": 2, "backbone": "net", "example_input": EXAMPLE}
    return MVPCallback(**{**defaults, **options})


def removed_entries(mvp: MVPCallback, tensors: dict[str, Tensor]) -> list[Tensor]:
    """What removed units own of parameters, or of anything by the parameters' names."""
    dead = dead_entries(mvp.groups, mvp.masks)
    return [tensors[name].index_select(axis, entries) for name, parts in dead.items() for axis, entries in parts]


def loader(batches: int = 12, batch_size: int = 6) -> DataLoader:
    """Always the same images in the same order, three classes told apart by colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(batches * batch_size) % len(CLASSES)
    images = torch.randn(len(labels), 3, 16, 16, generator=generator)
    images[torch.arange(len(labels)), labels] += 1.0
    return DataLoader(TensorDataset(images, labels), batch_size)


def make_trainer(*callbacks: L.Callback, max_steps: int = 12, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(max_steps=max_steps, callbacks=list(callbacks), **{**quiet, **options})


def fit(module: L.LightningModule, *callbacks: L.Callback, max_steps: int = 12, **options: Any) -> L.Trainer:
    trainer = make_trainer(*callbacks, max_steps=max_steps, **options)
    trainer.fit(module, loader())
    return trainer


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holds(mvp: MVPCallback, module: UserModule) -> None:
    """All rounds happened, and the module is zero where, and only where, the masks say."""
    assert mvp.finished
    assert abs(mvp.masks.pruning_ratio - 0.5) <= 0.05
    assert masks_from_zeros(module.net, mvp.groups) == mvp.masks


def trained(mvp: MVPCallback | None = None, module: UserModule | None = None, **options: Any) -> MVPCallback:
    mvp = callback(head="classifier") if mvp is None else mvp
    module = UserModule() if module is None else module
    fit(module, mvp, **options)
    holds(mvp, module)
    return mvp


def coloured(labels: Tensor) -> Part:
    """Images of one colour for each class, with noise."""
    generator = torch.Generator().manual_seed(int(labels.sum()))
    images = torch.randn(len(labels), 3, 16, 16, generator=generator)
    images[torch.arange(len(labels)), labels] += 1.0
    return Part((127 + 40 * images).clamp(0, 255).to(torch.uint8), labels)
