"""A task pruned in the two ways that `filling` compares, and once more from weights that differ by one rounding."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from networks import recipe_named
from torch import Tensor, nn

from lightning_mvp import ImageData, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning.engine import fractions_kept
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.splits import TaskSpec, split_tasks
from lightning_mvp.training.rounds import Moments, OwnCutter, prune_and_cut

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "resnet": {"learning_rate": 0.05},
    "vit": {"learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.05},
}
CLIP = 1.0
BATCH = 32
FEWER = {"characters": "ABDEGHJK", "per_class_train": 12, "per_class_val": 4, "per_class_test": 6}


@dataclass(frozen=True)
class Work:
    """What is trained on, and from where; travels to other processes.

    Args:
        data: arguments of :func:`load_data`.
        weights: θ⁰ by backbone; others are random.
        steps: of each run.
        classes: of each task.
        augment: of training images.
        seed: of tasks, order and random weights.
    """

    data: dict[str, Any]
    weights: dict[str, str]
    steps: int
    classes: int
    augment: str
    seed: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Work:
        data: dict[str, Any] = {"name": "glyphs", **(FEWER if options.smoke else {})}
        if options.data:
            names = {"train": "cifar100_train.npz", "test": "cifar100_test.npz"}
            data = {"name": "arrays", "root": str(options.data), **names}
        weights = dict(pair.split("=", 1) for pair in options.filling_weights)
        steps = 8 if options.smoke else options.filling_steps
        few = options.smoke and not options.data
        augment = "crop_flip" if options.data else "crop"
        return cls(data, weights, steps, 3 if few else 10, augment, options.seed)

    def tasks(self, data: ImageData, count: int) -> list[TaskSpec]:
        """Tasks as a zoo has them."""
        options = {"classes_per_task": self.classes, "targets": 1, "held_out_fraction": 0.0}
        return list(split_tasks(data.classes, sources=count, seed=self.seed, **options).source)  # type: ignore[arg-type]

    def datamodule(self, data: ImageData, task: TaskSpec) -> TaskDataModule:
        return TaskDataModule(data, task.classes, task.name, batch_size=BATCH, augment=self.augment, seed=self.seed)

    def module(self, backbone: str, data: TaskDataModule) -> TaskModule:
        """θ⁰ with a ridge head."""
        torch.manual_seed(self.seed)
        theta0 = create_backbone(recipe_named(backbone), weights=self.weights.get(backbone))
        module = TaskModule.for_task(theta0, data.facts, **optimizer_of(backbone))
        module.initialise_head(data)
        return module


def optimizer_of(backbone: str) -> dict[str, Any]:
    return OPTIMIZERS["vit" if backbone.startswith("vit") else "resnet"]


@dataclass
class Run:
    """What one way of pruning came to: masks after the first round and the last, seconds, test accuracy, size left.

    Seconds are by the clock on the wall; ``cpu`` are those of this process on its CPUs, whatever else the machine does.
    """

    seconds: float
    cpu: float
    accuracy: float
    first: Masks
    last: Masks
    parameters: float


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = _clocks()
    return wall - start[0], cpu - start[1]


class FirstMasks(L.Callback):
    """Keeps the masks of the first round; stands after MVPCallback."""

    masks: Masks | None = None

    def __init__(self, pruning: MVPCallback) -> None:
        self.pruning = pruning

    def on_train_batch_end(self, *_: Any) -> None:
        if self.masks is None and self.pruning.rounds_done:
            self.masks = self.pruning.masks


class NotingCutter(OwnCutter):
    """Keeps the masks of the first round."""

    first: Masks | None = None

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        smaller = super().cut(module, moments, kept_fraction)
        self.first = self.first or self.masks
        return smaller


def zero(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """By MVPCallback in a Trainer, at full size."""
    start = _clocks()
    pruning = MVPCallback(pruning_ratio=ratio, head="head")
    first = FirstMasks(pruning)
    fit_quietly(module, data, steps, [pruning, first], precision=precision, gradient_clip_val=CLIP)
    small = pruning.small_model()
    seconds, cpu = _since(start)
    assert first.masks is not None
    left = fractions_kept(pruning.cost, pruning.masks)["params"]
    assert isinstance(small, nn.Sequential)
    module.backbone, module.head = small[0], small[1]  # type: ignore[assignment]
    return Run(seconds, cpu, module.accuracy_on(*data.test_images()), first.masks, pruning.masks, left)


def again(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """Zeroed, from weights that differ by one rounding."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 2**-23)
    return zero(module, data, ratio, steps, precision)


def cut(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """Cutting between rounds."""
    start = _clocks()
    settings = PruningSettings(pruning_ratio=ratio)
    assert isinstance(module.example_input_array, Tensor)
    prunable = find_prunable(module.backbone, (module.example_input_array,), settings)
    cutter = NotingCutter(prunable.groups, prunable.cost, settings)
    small = prune_and_cut(module, data, cutter, settings, steps, clip=CLIP, precision=precision)
    seconds, cpu = _since(start)
    assert cutter.first is not None
    left = fractions_kept(prunable.cost, cutter.masks)["params"]
    return Run(seconds, cpu, small.accuracy_on(*data.test_images()), cutter.first, cutter.masks, left)


WAYS: dict[str, Callable[[TaskModule, TaskDataModule, float, int, str], Run]] = {
    "zeroed": zero,
    "again": again,
    "cut": cut,
}


def mean_iou(one: Masks, other: Masks) -> float:
    return statistics.mean(one.iou(other).values())
