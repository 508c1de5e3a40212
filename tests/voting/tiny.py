"""A hand-written backbone of two convs with norms and a linear layer: groups whose index maps can be checked by eye."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.backbones.units import Groups, Member, UnitGroup

SIZES = {"one": 5, "two": 4}


def tiny_groups() -> Groups:
    """Group "two" owns two features per unit, as a conv before flattening does."""
    one, two = (np.arange(size)[:, None] for size in SIZES.values())
    spans = np.arange(8).reshape(4, 2)
    norm = ("weight", "bias", "running_mean", "running_var")
    return Groups(
        [
            UnitGroup(
                "one",
                "conv",
                5,
                (
                    Member("conv1.weight", 0, one, "producer"),
                    *(Member(f"bn1.{name}", 0, one, "statistic" if "run" in name else "norm") for name in norm),
                    Member("conv2.weight", 1, one, "consumer"),
                ),
            ),
            UnitGroup(
                "two",
                "conv",
                4,
                (Member("conv2.weight", 0, two, "producer"), Member("linear.weight", 1, spans, "consumer")),
            ),
        ]
    )


def tiny_state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv1.weight": (5, 3),
        "bn1.weight": (5,),
        "bn1.bias": (5,),
        "bn1.running_var": (5,),
        "bn1.running_mean": (5,),
        "conv2.weight": (4, 5),
        "linear.weight": (2, 8),
        "linear.bias": (2,),
    }
    state = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    state["bn1.running_var"] = state["bn1.running_var"].exp()
    state["conv1.weight"][0, 0] = -0.0
    return {**state, "bn1.num_batches_tracked": torch.tensor(10 * seed)}
