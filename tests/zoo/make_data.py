"""Write a small zoo: `python -m tests.zoo.make_data tests/zoo/data/zoo-version-N` when the format gets a new version.

`--vit` makes one of a vision transformer, as `tests/zoo/data/zoo-vit-version-1` was made before issue 15.

The folders written by earlier versions are never written again: they prove that later versions read them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_mvp.backbones import create_backbone, find_groups
from lightning_mvp.backbones.features import features_of
from lightning_mvp.backbones.masks import random_masks
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.recall import class_means
from lightning_mvp.zoo import ModelZoo, ZooEntry, entry_id
from lightning_mvp.zoo.seen_by import as_seen_by, preprocessing_of

RECIPE = {
    "model": "resnet18",
    "arguments": {
        "layers": [1, 1],
        "channels": [8, 12],
        "stem_type": "deep",
        "stem_width": 4,
        "num_classes": 0,
    },
    "replace": {
        "conv1": ["Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False}],
        "maxpool": ["Identity", {}],
        "layer3": ["Identity", {}],
        "layer4": ["Identity", {}],
    },
    "input_size": 16,
    "in_chans": 3,
}
VIT_RECIPE = {
    "model": "vit_tiny_patch16_224",
    "arguments": {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 0},
    "replace": {},
    "input_size": 16,
    "in_chans": 3,
}
CLASSES = ("red", "grün", "blue", "grey")
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (120, 120, 120))


def images_of(*classes: str, each: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw images of these colours, without any random number: the same on every machine and in every version."""
    position = torch.arange(each * 3 * 16 * 16).reshape(each, 3, 16, 16)
    noise = (position * 7919) % 101 - 50
    colours = torch.tensor([COLOURS[CLASSES.index(name)] for name in classes])
    images = (colours[:, None, :, None, None] + noise).clamp(0, 255).to(torch.uint8).flatten(0, 1)
    return images, torch.arange(len(classes)).repeat_interleave(each)


def make_zoo(folder: Path, recipe: dict[str, Any] = RECIPE) -> ModelZoo:
    """Two tasks of one pruning config with all parts, and one of another config with masks and weights only."""
    torch.manual_seed(0)
    backbone = create_backbone(recipe).eval()
    groups = find_groups(backbone, torch.zeros(1, 3, 16, 16))
    theta0 = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    common = preprocessing_of(TaskFacts("zoo", ("any",), 16, (0.5, 0.4, 0.3), (0.25,) * 3).to_dict())
    zoo = ModelZoo.create(folder, recipe, theta0, groups.sizes, common)
    for seed, (name, classes, ratio, mean) in enumerate(
        [
            ("warm", ("red", "grey"), 0.5, (0.5, 0.4, 0.3)),
            ("cold", ("grün", "blue"), 0.5, (0.1, 0.2, 0.3)),
            ("bare", ("red", "grün", "blue"), 0.25, (0.5, 0.4, 0.3)),
        ]
    ):
        facts = TaskFacts(name, classes, input_size=16, mean=mean, std=(0.25,) * 3)
        seen_by = as_seen_by(facts, common)  # the same in the versions before, whose tasks are all alike
        config = {"pruning_ratio": ratio, "rounds": 4, "ratio_of": "units"}
        masks = random_masks(groups, ratio, seed)
        small = shrink(backbone, groups, masks)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
        raw, labels = images_of(*classes)
        images, full = preprocess(raw, facts), ratio == 0.5
        features = features_of(backbone, preprocess(raw, seen_by))
        head = ridge_head(features_of(small, images), labels, len(classes)).state_dict()
        importance = {group.name: torch.rand(group.size, generator=generator).numpy() for group in groups}
        zoo.add(
            ZooEntry(
                name=entry_id(name, config),
                facts=facts.to_dict(),
                config=config,
                masks={group: mask.numpy() for group, mask in masks.items()},
                weights={key: tensor.detach().numpy() for key, tensor in small.state_dict().items()},
                importance=importance if full else {},
                head={key: tensor.detach().numpy() for key, tensor in head.items()} if full else {},
                prototypes=np.asarray(class_means(features, labels)) if full else None,
                info={"metrics": {"val_accuracy": 0.75, "auc": float("nan")}, "steps": 100},
                prototypes_seen_by=common if full and seen_by != facts else None,
            )
        )
    return zoo


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vit", action="store_true")
    options = parser.parse_args()
    print(make_zoo(options.folder, VIT_RECIPE if options.vit else RECIPE))
