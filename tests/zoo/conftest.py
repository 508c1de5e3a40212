from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo import ModelZoo, ZooEntry, entry_id

GROUPS = {"stem": 6, "block": 9}
THETA0 = {
    "stem.weight": np.arange(18, dtype=np.float32).reshape(6, 3),
    "stem.num_batches_tracked": np.array(7, dtype=np.int64),
    "block.weight": np.ones((9, 6), dtype=np.float32),
}
CONFIG = {"pruning_ratio": 0.5, "rounds": 2}


def make_entry(task: str = "source-000", config: dict = CONFIG, seed: int = 0) -> ZooEntry:
    """A small entry that fits GROUPS and THETA0."""
    rng = np.random.default_rng(seed)
    masks = {}
    for group, size in GROUPS.items():
        masks[group] = np.zeros(size, dtype=bool)
        masks[group][rng.permutation(size)[: size // 2]] = True
    return ZooEntry(
        name=entry_id(task, config),
        facts={
            "name": task,
            "classes": ["a", "b"],
            "input_size": 8,
            "mean": [0.5],
            "std": [0.25],
            "interpolation": "bilinear",
            "crop": 1.0,
        },
        config=dict(config),
        masks=masks,
        weights={
            "stem.weight": rng.normal(size=(3, 3)).astype(np.float32),
            "stem.num_batches_tracked": np.array(9, dtype=np.int64),
            "block.weight": rng.normal(size=(4, 3)).astype(np.float32),
        },
        importance={group: rng.random(size).astype(np.float32) for group, size in GROUPS.items()},
        head={"weight": rng.normal(size=(2, 4)).astype(np.float32), "bias": np.zeros(2, np.float32)},
        prototypes=rng.normal(size=(2, 9)).astype(np.float32),
        info={"accuracy": 0.75, "steps": 100},
    )


@pytest.fixture
def entry() -> ZooEntry:
    return make_entry()


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., ModelZoo]:
    """Make a zoo with entries of these tasks."""

    def filled(*tasks: str) -> ModelZoo:
        zoo = ModelZoo.create(tmp_path / "zoo", {"model": "mini"}, THETA0, GROUPS)
        for seed, task in enumerate(tasks):
            zoo.add(make_entry(task, seed=seed))
        return zoo

    return filled
