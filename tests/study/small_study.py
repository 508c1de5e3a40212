"""A study small enough for a second: settings, and a data set in memory that is easy to learn."""

from __future__ import annotations

import torch

from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.partition import ImageData, Part

from ..backbones.recipes import recipe

CLASSES = tuple("abcdef")


def images_of(per_class: int, seed: int) -> Part:
    """Stripes under noise: a class has a colour and a direction."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(CLASSES)).repeat_interleave(per_class)
    images = torch.randint(0, 100, (len(labels), 3, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        upright, colour = divmod(label, 3)
        stripes = image[colour].T if upright else image[colour]
        stripes[::4] += 150
    return Part(images, labels)


def noise(per_class: int, seed: int) -> Part:
    """Images of nothing, with labels that say nothing."""
    part = images_of(per_class, seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, part.images.shape, generator=generator, dtype=torch.uint8)
    return Part(images, part.labels[torch.randperm(len(part), generator=generator)])


def in_memory(val: Part, test: Part) -> ImageData:
    return ImageData("stripes", CLASSES, images_of(10, seed=0), val, test)


def settings(**changes: object) -> StudySettings:
    options: dict[str, object] = {
        "data": {"name": "stripes"},
        "split": {"classes_per_task": 3, "sources": 3, "targets": 1, "held_out_fraction": 0.0},
        "recipe": recipe("resnet_mini"),
        "pretrain": {"steps": 4, "batch_size": 16, "learning_rate": 0.05, "augment": "none"},
        "pruning": {"criterion": "taylor", "pruning_ratio": 0.7, "rounds": 2},
        "vote": {"neighbours": 2},
        "optim": {"learning_rate": 0.02},
        "steps": 4,
        "source_steps": 4,
        "batch_size": 10,
        "methods": tuple(name for name in METHODS if name not in ("generic_parent", "grown")),
        "precision": "32-true",
        **changes,
    }
    return StudySettings(**options)  # type: ignore[arg-type]
