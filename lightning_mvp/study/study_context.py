"""The data, tasks and backbones of a study, which all of its parts in one process share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.records import rank_part, require_record
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.partition import ImageData, stratified_split
from lightning_mvp.tasks.splits import TaskSpec, TaskSplit, split_tasks


class StudyContext:
    """A study's data and backbones. Each is loaded when it is first needed, and once in a process.

    Args:
        folder: of the study.
        settings: of the study.
    """

    def __init__(self, folder: Path, settings: StudySettings) -> None:
        self.folder, self.settings = folder, settings

    @cached_property
    def data(self) -> ImageData:
        return load_data(**self.settings.data).loaded()

    @cached_property
    def halves(self) -> tuple[ImageData, ImageData]:
        """The images that θ⁰, parent and zoo learn from, and those of new tasks; both are all unless ``new_images``."""
        if not self.settings.new_images:
            return self.data, self.data
        train = self.data.train
        past, new = (train[half] for half in stratified_split(train.labels, 0.5, self.settings.seed))
        return replace(self.data, train=past), replace(self.data, train=new)

    @cached_property
    def split(self) -> TaskSplit:
        return split_tasks(self.data.classes, **self.settings.split)

    @property
    def home(self) -> Path:
        """The folder of the study whose θ⁰ and parent are used."""
        return Path(self.settings.home or self.folder)

    @property
    def zoo_home(self) -> Path:
        """The folder of the study whose zoo and generic models are used."""
        return Path(self.settings.zoo_of or self.folder)

    @property
    def theta0_path(self) -> Path:
        return self.home / "theta0.safetensors"

    @cached_property
    def theta0(self) -> Origin:
        """The pre-trained backbone."""
        return self._load_origin(self.settings.recipe, self.theta0_path)

    @cached_property
    def zoo_origin(self) -> Origin:
        """What the zoo's entries begin with: θ⁰, or the parent that they share."""
        if self.settings.parent is None:
            return self.theta0
        recipe = require_record(self.home, "parent")["recipe"]
        return self._load_origin(recipe, self.home / "parent.safetensors")

    def _load_origin(self, recipe: Mapping[str, Any], weights: Path) -> Origin:
        pruning = PruningSettings(**self.settings.pruning)
        return Origin(recipe, weights, tuple(self.data.image_shape), pruning.include, pruning.exclude)

    def task(self, name: str) -> TaskSpec:
        """The task of a name such as ``source-007``."""
        kind, _, number = name.rpartition("-")
        return self.split.get(kind, int(number))

    def datamodule(self, task: TaskSpec, **options: Any) -> TaskDataModule:
        """The images of a task, with the study's batch size and augmentation unless others are given."""
        options = {"batch_size": self.settings.batch_size, "augment": self.settings.augment, **options}
        is_new = task.name.startswith((self.settings.target_kind, "development"))
        if is_new:
            options["images_per_class"] = self.settings.images_per_class
        return TaskDataModule(self.halves[is_new], task.classes, task.name, seed=self.settings.seed, **options)

    def scratch_settings(self, settings: StudySettings, **changes: Any) -> PruningSettings:
        """How methods without a zoo prune θ⁰."""
        return PruningSettings(**{**settings.pruning, "seed": settings.seed, **changes})

    def ranking(self, task: str, similarity: str = "leep") -> dict[str, Any]:
        """The record of the zoo's ranking for a task, which is made before the methods that use it."""
        return require_record(self.folder, rank_part(task, similarity))
