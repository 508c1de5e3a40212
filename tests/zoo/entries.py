"""A small zoo's content. Imports neither torch nor pytest: processes that only write or read start quickly."""

from __future__ import annotations

import numpy as np

from lightning_mvp.zoo import ZooEntry, entry_id

GROUPS = {"stem": 6, "block": 9}
THETA0 = {
    "stem.weight": np.arange(18, dtype=np.float32).reshape(6, 3),
    "stem.num_batches_tracked": np.array(7, dtype=np.int64),
    "block.weight": np.ones((9, 6), dtype=np.float32),
}
CONFIG = {"pruning_ratio": 0.5, "rounds": 2}


def make_entry(task: str = "source-000", config: dict = CONFIG, seed: int = 0) -> ZooEntry:
    """A small entry that fits GROUPS and THETA0; its values are drawn by the seed."""
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
