"""The forward passes that a vote can't do without, timed alone."""

from __future__ import annotations

import time

import torch

from lightning_mvp import Groups, ModelZoo
from lightning_mvp.backbones.passes import images_a_batch
from lightning_mvp.zoo.rebuild import dense_backbone, rebuild


class Passes:
    """Seconds of each entry's model for one image; random images go through it in batches as the library makes them.

    Args:
        zoo: the entries.
        groups: of its backbone.
        pixels: side of an image.
        sample: how many images a call of :meth:`run` times for each entry; a batch at least.
        device: where.
    """

    def __init__(self, zoo: ModelZoo, groups: Groups, pixels: int, sample: int, device: str = "cpu") -> None:
        self.zoo, self.groups, self.device = zoo, groups, device
        batch = images_a_batch(pixels, device)
        self.batches = max(1, sample // batch)
        self.images = torch.randn(batch if sample > batch else sample, 3, pixels, pixels, device=device)
        self.seconds: dict[str, list[float]] = {name: [] for name in zoo.names}

    def run(self) -> None:
        """Time the sample once more; reading and building the models is not timed, and the first batch warms up."""
        dense = dense_backbone(self.zoo)
        for name in self.zoo.names:
            model = rebuild(self.zoo[name], dense, self.groups)[0].to(self.device)
            with torch.no_grad():
                for turn in range(self.batches + 1):
                    begin = time.perf_counter()
                    model(self.images).sum().item()  # waits for the device
                    if turn:
                        self.seconds[name].append((time.perf_counter() - begin) / len(self.images))

    def needed(self, scoring: int, reestimation: int, train: int) -> dict[str, float]:
        """Seconds of passes of so many images: each entry's mean; those of the voted model as an average entry."""
        each = {name: sum(taken) / len(taken) for name, taken in self.seconds.items()}
        voted = sum(each.values()) / len(each)
        return {
            "scoring images through each entry": scoring * sum(each.values()),
            "batch norm of the voted model": reestimation * voted,
            "ridge head of the voted model": train * voted,
        }
