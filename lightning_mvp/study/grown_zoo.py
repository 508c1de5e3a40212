"""The zoos of a study that grow: one source task after the other starts from the vote of the zoo's latest entries."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightning_mvp.fitting.growing import grow
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.records import read_records
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.partition import Part
from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.zoo import ModelZoo


def grown_zoo_folder(study: Path, name: str) -> Path:
    """Where the zoo of a growth is."""
    return study / f"grown-{name}"


def open_grown_zoo(study: Path, name: str, settings: StudySettings) -> ModelZoo:
    """The zoo of a growth in a study's folder; at first a copy of its seeds."""
    folder = grown_zoo_folder(study, name)
    if not (folder / "zoo.json").exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        copy_entries(study, settings.sources[: settings.growth(name).seeds], partial)
        partial.rename(folder)
    return ModelZoo(folder)


def copy_entries(study: Path, sources: Sequence[str], folder: Path) -> ModelZoo:
    """A copy of a study's zoo that has the entries of some source tasks alone."""
    shutil.copytree(study / "zoo", folder, ignore=shutil.ignore_patterns("catalogue*"))
    zoo, kept = ModelZoo(folder), {record["entry"] for record in read_records(study, sources)}
    for entry in set(zoo.names) - kept:
        zoo.remove(entry)
    return zoo


def grow_one(
    zoo: ModelZoo, data: TaskDataModule, growth: Growth, index: int, settings: StudySettings
) -> dict[str, Any]:
    """One more entry of a growing zoo, and what it took.

    Args:
        zoo: as :func:`open_grown_zoo` gives it.
        data: of the task that joins.
        growth: how the zoo grows.
        index: how many tasks have joined before.
        settings: of the study.
    """
    for member in lineage(zoo):
        if member.wave and member.task == data.facts.name:
            zoo.remove(member.name)  # a stop between entry and record: its seconds are not known
    if growth.shuffle or growth.poison == index:
        data = with_permuted_labels(data, settings.seed + index)
    start = time.perf_counter()
    grown = grow(
        zoo,
        data,
        steps=growth.steps,
        neighbours=growth.neighbours,
        wave=growth.wave(index),
        seed=settings.seed,
        keep_worse=True,
        precision=settings.precision,
        mimic=growth.mimic,
        **settings.optim,
    )
    info = zoo.header(grown.name)["info"]
    return {
        "entry": grown.name,
        "task": data.facts.name,
        "classes": list(data.facts.classes),
        "steps": growth.steps,
        "start_accuracy": grown.start_accuracy,
        "val_accuracy": grown.val_accuracy,
        "parents": info["parents"],
        "generation": info["generation"],
        "seconds": time.perf_counter() - start,
        "masks": grown.module.report["masks"],
    }


def with_permuted_labels(task: TaskDataModule, seed: int) -> TaskDataModule:
    """The same task, over data in which the labels of its training images are permuted among them.

    Args:
        task: with all training images of its classes.
        seed: of the permutation.
    """
    train, classes = task.data.train, task.spec.classes
    own = torch.isin(train.labels, torch.tensor([task.data.classes.index(name) for name in classes])).nonzero()[:, 0]
    labels = train.labels.clone()
    labels[own] = labels[own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))]]
    data = replace(task.data, train=Part(train.images, labels))
    return TaskDataModule(data, classes, task.spec.name, task.batch_size, task.seed, task.augment)
