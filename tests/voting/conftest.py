from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import Groups, create_backbone, find_groups
from lightning_mvp.backbones.features import features_of
from lightning_mvp.backbones.masks import Masks, random_masks
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.recall import class_means
from lightning_mvp.zoo import ModelZoo, ZooEntry, entry_id

CLASSES = tuple("abcdefgh")
RECIPE = {
    "model": "resnet18",
    "arguments": {
        "layers": [1, 1, 1],
        "channels": [8, 12, 16],
        "stem_type": "deep",
        "stem_width": 4,
        "num_classes": 0,
    },
    "replace": {
        "conv1": ["Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False}],
        "maxpool": ["Identity", {}],
        "layer4": ["Identity", {}],
    },
    "input_size": 16,
    "in_chans": 3,
}


@dataclass(frozen=True)
class World:
    """A small backbone with its groups, and images of eight classes told apart by their mean colour."""

    backbone: nn.Module
    groups: Groups
    images: Tensor
    labels: Tensor

    def of(self, *classes: str) -> tuple[Tensor, Tensor]:
        """Raw images and labels 0..k-1 of a task."""
        ids = [CLASSES.index(name) for name in classes]
        chosen = torch.cat([(self.labels == label).nonzero().ravel() for label in ids])
        return self.images[chosen], torch.tensor([ids.index(label) for label in self.labels[chosen].tolist()])

    def facts(self, name: str, classes: str, mean: float = 0.5) -> TaskFacts:
        return TaskFacts(name, tuple(classes), input_size=16, mean=(mean,) * 3, std=(0.25,) * 3)

    def entry(self, name: str, classes: str, seed: int, ratio: float = 0.5, mean: float = 0.5) -> ZooEntry:
        """An entry with random masks, the backbone's weights moved a little, and the ridge head that fits them."""
        facts, config = self.facts(name, classes, mean), {"pruning_ratio": ratio}
        masks = random_masks(self.groups, ratio, seed)
        small = shrink(self.backbone, self.groups, masks)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
        images, labels = self.of(*classes)
        head = ridge_head(features_of(small, preprocess(images, facts)), labels, len(classes))
        return ZooEntry(
            name=entry_id(name, config),
            facts=facts.to_dict(),
            config=config,
            masks=arrays(masks),
            weights=arrays(small.state_dict()),
            importance={group.name: np.ones(group.size, np.float32) for group in self.groups},
            head=arrays(head.state_dict()),
            prototypes=class_means(features_of(self.backbone, preprocess(images, facts)), labels).numpy(),
        )


def arrays(state: dict[str, Tensor] | Masks) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in state.items()}


@pytest.fixture(scope="session")
def world() -> World:
    torch.manual_seed(0)
    backbone = create_backbone(RECIPE).eval()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(24)
    colours = torch.tensor([[x, y, z] for x in (70, 180) for y in (70, 180) for z in (70, 180)])
    noise = torch.randn(len(labels), 3, 16, 16, generator=generator) * 40
    images = (colours[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        backbone.train()(preprocess(images, TaskFacts("all", CLASSES, 16, (0.5,) * 3, (0.25,) * 3)))
    return World(backbone.eval(), find_groups(backbone, torch.zeros(1, 3, 16, 16)), images, labels)


@pytest.fixture
def zoo(world: World, tmp_path: Path) -> Callable[..., ModelZoo]:
    """Make a zoo with these entries."""

    def filled(*entries: ZooEntry) -> ModelZoo:
        made = ModelZoo.create(tmp_path / "zoo", RECIPE, arrays(world.backbone.state_dict()), world.groups.sizes)
        for entry in entries:
            made.add(entry)
        return made

    return filled
