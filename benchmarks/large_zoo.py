"""Zoos whose entries have masks and weights of their own, made without training: they cost what others do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_mvp import Groups, ModelZoo, create_backbone, find_groups
from lightning_mvp.backbones import random_masks, slice_state
from lightning_mvp.backbones.create import recipe_of
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo import ZooEntry, entry_id

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOISE = 0.01  # of an entry's weights, as a fraction of each tensor's standard deviation


def make_zoo(
    folder: Path, recipe: Mapping[str, Any], entries: int, ratio: float, classes: int = 10, seed: int = 0
) -> tuple[ModelZoo, Groups]:
    """Fill a new zoo: masks are drawn for each entry, weights are θ⁰'s at the units kept, with noise of its own.

    Args:
        folder: of the zoo.
        recipe: of the backbone, whose weights are random.
        entries: how many.
        ratio: of the units that each entry lacks.
        classes: of each entry's task.
        seed: everything follows from it.
    """
    torch.manual_seed(seed)
    size = recipe["input_size"]
    backbone = create_backbone(recipe).eval()
    example = torch.zeros(1, 3, size, size)
    groups = find_groups(backbone, example, check=False)
    with torch.no_grad():
        features = backbone(example).shape[1]
    dense = backbone.state_dict()
    facts = {"input_size": size, "mean": MEAN, "std": STD}
    zoo = ModelZoo.create(
        folder,
        recipe_of(backbone),
        {name: value.numpy() for name, value in dense.items()},
        groups.sizes,
        {**facts, "interpolation": "bilinear", "crop": 1.0},
    )
    for number in range(entries):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        rng = np.random.default_rng([seed, number])
        masks = random_masks(groups, ratio, seed * 1000 + number)
        state = slice_state({name: _own(value, generator) for name, value in dense.items()}, groups, masks)
        names = tuple(f"source-{number}-{c}" for c in range(classes))
        task = TaskFacts(f"source-{number:03d}", names, **facts)
        config = {"pruning_ratio": ratio, "rounds": 1}
        kept = len(groups.kept_features(masks, features))
        entry = ZooEntry(
            name=entry_id(task.name, config),
            facts=task.to_dict(),
            config=config,
            masks={name: mask.numpy() for name, mask in masks.items()},
            weights={name: value.numpy() for name, value in state.items()},
            importance={name: rng.random(len(mask), np.float32) for name, mask in masks.items()},
            head={
                "weight": rng.standard_normal((classes, kept), np.float32) / kept**0.5,
                "bias": np.zeros(classes, np.float32),
            },
            prototypes=rng.standard_normal((classes, features), np.float32),
        )
        zoo.add(entry)
    return zoo, groups


def _own(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor of θ⁰ with noise; counters and what does not vary stay."""
    if not value.is_floating_point() or value.numel() < 2:
        return value
    return value + NOISE * value.std() * torch.randn(value.shape, generator=generator)
