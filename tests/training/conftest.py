"""Six classes of coloured noise at 16 pixels, and a tiny zoo pruned from them for each kind of backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mvp import ImageData, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.tasks.data import Part

from ..callbacks.user import RECIPE, VIT_RECIPE

RECIPES = {"resnet": RECIPE, "vit": VIT_RECIPE}
CLASSES = tuple("abcdef")
SOURCES = {"first": "abc", "second": "bcd", "third": "def"}
TARGET = "acd"


def part(per_class: int, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(6 * per_class) % 6
    colours = torch.tensor(
        [[60, 60, 200], [60, 200, 60], [200, 60, 60], [60, 200, 200], [200, 60, 200], [200, 200, 60]]
    )
    noise = 60 * torch.randn(len(labels), 3, 16, 16, generator=generator)
    return Part((colours[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="session")
def data() -> ImageData:
    return ImageData("colours", CLASSES, part(16, 0), part(4, 1), part(8, 2))


def task(data: ImageData, classes: str, name: str) -> TaskDataModule:
    return TaskDataModule(data, classes=tuple(classes), name=name, batch_size=12, augment="none")


@pytest.fixture(scope="session")
def target(data: ImageData) -> TaskDataModule:
    return task(data, TARGET, "target")


@pytest.fixture(scope="session")
def zoo_of(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelZoo]:
    """The zoo of ``resnet`` or ``vit``: three tasks, half of the units, made once; tests must not change it."""
    made: dict[str, ModelZoo] = {}

    def zoo_of(kind: str) -> ModelZoo:
        if kind not in made:
            made[kind] = fill(data, tmp_path_factory.mktemp(kind) / "zoo", RECIPES[kind])
        return made[kind]

    return zoo_of


def fill(data: ImageData, path: Path, recipe: dict[str, Any]) -> ModelZoo:
    torch.manual_seed(0)
    theta0 = create_backbone(recipe).state_dict()
    for name, classes in SOURCES.items():
        datamodule = task(data, classes, name)
        backbone = create_backbone(recipe)
        backbone.load_state_dict(theta0)
        module = TaskModule.for_task(backbone, datamodule.facts)
        module.initialise_head(datamodule)
        pruning = MVPCallback(pruning_ratio=0.5, rounds=2, head="head", task=datamodule.facts, zoo=path)
        fit_quietly(module, datamodule, 8, [pruning])
    return ModelZoo(path)
