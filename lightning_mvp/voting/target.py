"""The training images of a target task, and those of them that decide which entries are near."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.reading import balanced_subset, class_names, read_sample
from lightning_mvp.voting.sources import as_input

REESTIMATION_BATCH = 128
REESTIMATION_BATCHES = 50


@dataclass(frozen=True)
class Target:
    """Training images of the target in seeded order, and the class-balanced part of them that decides similarity.

    Args:
        images: ``(n, C, H, W)``, raw uint8 or float and preprocessed.
        scoring_images: those of the images that decide the similarity, ``(m, C, H, W)``.
        scoring_labels: the labels of the scoring images.
        facts: the facts of the task, where a `TaskDataModule` says them.
        classes: the names of the task's classes, where they are known.
    """

    images: Tensor
    scoring_images: Tensor
    scoring_labels: Tensor
    facts: dict[str, Any] | None
    classes: tuple[str, ...] | None

    @classmethod
    def read(
        cls,
        loader: Any,
        n: int,
        batches: int,
        seed: int,
        labels_matter: bool = False,
        classes: Sequence[str] | None = None,
    ) -> Target:
        """Read the training data of the target.

        Args:
            loader: a `TaskDataModule`, or an iterable of ``(images, labels)``.
            n: the most images that decide the similarity. If two of each class are more, it is these, as one image of a
                class says nothing.
            batches: number of batches that are read of a loader in shuffled order.
            seed: seed of the images' order.
            labels_matter: whether anything is decided by labels. If false, any labels will do.
            classes: names of all classes; None takes those of the loader's data set, where it has them.

        Raises:
            ValueError: the loader gives nothing usable, or labels that are no classes where these matter.
        """
        facts = None
        if hasattr(loader, "train_images"):  # a TaskDataModule: raw images, no augmentation
            images, labels = loader.train_images()
            facts = loader.facts.to_dict()
            classes = facts["classes"] if classes is None else classes
            scoring_images, scoring_labels = loader.scoring_images(max(n, 2 * len(facts["classes"])), seed)
        else:
            classes = class_names(loader) if classes is None else classes
            n = max(n, 2 * len(classes or ()))
            sample = read_sample(
                loader, wanted=n, batches=batches, classes=classes, seed=seed, labels_matter=labels_matter
            )
            images, labels = sample.images, sample.labels
            distinct = len(labels.unique()) if labels_matter and labels.ndim == 1 else 0
            chosen = balanced_subset(labels, max(n, 2 * distinct), seed)
            scoring_images, scoring_labels = images[chosen], labels[chosen]
        # Batch statistics need mixed classes, whatever the order the images came in.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        return cls(images[order], scoring_images, scoring_labels, facts, None if classes is None else tuple(classes))

    def first(self, facts: dict[str, Any], most: int) -> Tensor:
        """The first `most` training images, preprocessed, as one tensor; all of them if fewer were read."""
        return as_input(self.images[:most], facts)

    def batches(self, facts: dict[str, Any], most: int) -> Iterator[Tensor]:
        """Preprocessed batches of equal size: a small last one would count as much as the others."""
        images = self.images[: most * REESTIMATION_BATCH]
        for part in images.tensor_split(math.ceil(len(images) / REESTIMATION_BATCH)):
            yield as_input(part, facts)


def reestimation_batches(data: TaskDataModule, seed: int = 0) -> Iterator[Tensor]:
    """The batches on which `voted_backbone` re-estimates batch-norm statistics, for a fair rival's."""
    target = Target.read(data, len(data.facts.classes), REESTIMATION_BATCHES, seed)
    return target.batches(data.facts.to_dict(), REESTIMATION_BATCHES)
