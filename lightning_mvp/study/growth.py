"""The zoos of a study that grow: one source task after the other starts from the vote of the zoo's latest entries."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_mvp.fitting.growing import Grown, grow
from lightning_mvp.study.records import read_record
from lightning_mvp.study.settings import StudySettings
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class Growth:
    """How a zoo grows.

    Args:
        seeds: the first so many entries of the study's zoo.
        tasks: so many of the other source tasks join them, one after the other.
        order: 0: by number; any other draws an order.
        neighbours: how many of the latest vote; 1 trains one net on task after task.
        steps: of each new entry.
        mimic: weight of the mimicking loss.
        augment: of their images.
        shuffle: permute their labels, so that nothing true can be learned.
        poison: permute those of the task that joins after so many others, and of no other; None: of none.
        first_wave: so many tasks join in the first wave, all from the vote of the seeds, so with the same masks. As
            many as ``neighbours`` freeze the masks: from then on all voters have the same ones.
    """

    seeds: int = 8
    tasks: int = 42
    order: int = 0
    neighbours: int = 8
    steps: int = 100
    mimic: float = 2.0
    augment: str = "none"
    shuffle: bool = False
    poison: int | None = None
    first_wave: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "tasks", "neighbours", "steps", "first_wave"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected `growths.….{name}` to be an integer of at least 1, but got {value!r}.")

    def wave(self, index: int) -> int:
        """The wave of the task that joins after ``index`` others.

        Example:
            >>> [Growth().wave(index) for index in range(3)], [Growth(first_wave=2).wave(index) for index in range(3)]
            ([1, 2, 3], [1, 1, 2])
        """
        return max(1, index + 2 - self.first_wave)

    def sequence(self, sources: int) -> list[str]:
        """The names of the tasks that join, in their order.

        Raises:
            ValueError: there are not so many source tasks.
        """
        if self.seeds + self.tasks > sources:
            raise ValueError(
                f"Expected `split.sources` to be at least {self.seeds + self.tasks}, the seeds and tasks of a growth, "
                f"but got {sources}."
            )
        rest = np.arange(self.seeds, sources)
        if self.order:
            rest = np.random.default_rng(self.order).permutation(rest)
        return [f"source-{index:03d}" for index in rest[: self.tasks]]


def require_growth(trial: str, vote: Mapping[str, Any], settings: StudySettings) -> None:
    """Refuse a run from a grown zoo that does not say which one, or wants more entries than it will have.

    Args:
        trial: name of the run.
        vote: its settings of a vote.
        settings: of the study.

    Raises:
        ValueError: what was expected, and what it got.
    """
    name, entries = vote.get("growth"), vote.get("entries")
    if name not in settings.growths:
        raise ValueError(f"Expected {trial} to have `vote.growth` out of {list(settings.growths)}, but got {name!r}.")
    growth = Growth(**settings.growths[name])
    most = growth.seeds + growth.tasks
    if not isinstance(entries, int) or not growth.seeds <= entries <= most:
        raise ValueError(
            f"Expected {trial} to have `vote.entries` from {growth.seeds} to {most}, the seeds of growth {name} and "
            f"with all its tasks, but got {entries!r}."
        )


def refuse_bad_growths(settings: StudySettings) -> None:
    """Try what a growing zoo needs: options that exist, seeds among the study's entries, and tasks to join them.

    Raises:
        ValueError: what was expected, and what it got.
    """
    known = {field.name for field in fields(Growth)}
    for name, options in settings.growths.items():
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"Expected `growths.{name}` to have some of {', '.join(sorted(known))}, but got {unknown}."
            )
        growth = Growth(**options)
        growth.sequence(settings.split["sources"])
        if growth.seeds > len(settings.sources):
            raise ValueError(
                f"Expected `growths.{name}.seeds` to be at most {len(settings.sources)}, the source tasks that get an "
                f"entry, but got {growth.seeds}. Raise `entries`."
            )


def growth_folder(folder: Path, name: str) -> Path:
    """Where the zoo of a growth is."""
    return folder / f"grown-{name}"


def grow_one(
    zoo: ModelZoo, data: TaskDataModule, growth: Growth, index: int, settings: StudySettings
) -> dict[str, Any]:
    """One more entry of a growing zoo, and what it took.

    Args:
        zoo: as :func:`growing_zoo` gives it.
        data: of the task that joins.
        growth: how the zoo grows.
        index: how many have joined before.
        settings: of the study.
    """
    for member in lineage(zoo):
        if member.wave and member.task == data.facts.name:
            zoo.remove(member.name)  # a stop between entry and record: its seconds are not known
    if growth.shuffle or growth.poison == index:
        data = _shuffled(data, settings.seed + index)
    start = time.perf_counter()
    grown: Grown = grow(
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


def growing_zoo(study: Path, name: str, settings: StudySettings) -> ModelZoo:
    """The zoo of a growth in a study's folder; at first a copy of its seeds."""
    folder = growth_folder(study, name)
    if not (folder / "zoo.json").exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(study / "zoo", partial, ignore=shutil.ignore_patterns("catalogue*"))
        sources = settings.sources[: Growth(**settings.growths[name]).seeds]
        seeds = {record["entry"] for source in sources if (record := read_record(study, source)) is not None}
        copied = ModelZoo(partial)
        for entry in [entry for entry in copied.names if entry not in seeds]:
            copied.remove(entry)
        partial.rename(folder)
    return ModelZoo(folder)


def _shuffled(data: TaskDataModule, seed: int) -> TaskDataModule:
    """The same task with its training labels permuted."""
    labels = data._train.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    data._train = replace(data._train, labels=labels[order])
    return data
