"""The training images of a target task, and those of them that decide which entries are near."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mvp.backbones.passes import images_a_batch
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.reading import balanced_subset, class_names, iterated, pair_of, read_sample
from lightning_mvp.voting.target_images import HeldImages, Images, PartImages, StreamedImages, equal_batches

REESTIMATION_BATCH = 128  # or fewer of large images: see `images_a_batch`
REESTIMATION_BATCHES = 50
# Of the images of a loader that are held to be seen again, besides those that decide similarity: more are read again.
HELD = 2**27


@dataclass(frozen=True)
class Target:
    """Training images of the target in seeded order, and the class-balanced part of them that decides similarity.

    Args:
        images: those on which batch-norm statistics and weights are fitted.
        count: how many of these there are; None where that is not known.
        scoring: those that decide the similarity.
        labels: of these.
        facts: the facts of the task, where a `TaskDataModule` says them.
        classes: the names of the task's classes, where they are known.
    """

    images: Images
    count: int | None
    scoring: Images
    labels: Tensor
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

        No image of a `TaskDataModule` is opened yet. Of a loader the scoring images are held in memory, and the others
        if they are small; large ones are read once more when they are needed.

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
        if hasattr(loader, "scoring_part"):  # a TaskDataModule: raw images, no augmentation
            names, part = loader.facts.classes, loader.part("train")
            scored = loader.scoring_part(max(n, 2 * len(names)), seed)
            classes = names if classes is None else classes
            images: Images = PartImages(loader, part[_order(len(part), seed)])
            scoring = PartImages(loader, scored, hold=True)
            return cls(images, len(part), scoring, scored.labels, loader.facts.to_dict(), tuple(classes))
        facts = getattr(loader, "facts", None)
        if classes is None:
            classes = class_names(loader) if facts is None else facts.classes
        known = None if facts is None else facts.to_dict()
        n = max(n, 2 * len(classes or ()))
        rest = iterated(loader, "loader")
        begun = list(itertools.islice(rest, 1))
        streams = bool(begun) and batches * pair_of(begun[0], "loader")[0].nbytes > HELD
        sample = read_sample(
            itertools.chain(begun, rest),
            wanted=n,
            batches=batches,
            first_images=n if streams else None,
            classes=classes,
            seed=seed,
            labels_matter=labels_matter,
        )
        labels = sample.labels
        distinct = len(labels.unique()) if labels_matter and labels.ndim == 1 else 0
        chosen = balanced_subset(labels, max(n, 2 * distinct), seed)
        held = HeldImages(sample.images if streams and len(chosen) == len(labels) else sample.images[chosen])
        names = None if classes is None else tuple(classes)
        if streams and rest is not loader:
            most = batches * len(pair_of(begun[0], "loader")[1])
            return cls(StreamedImages(loader, most, held.preprocessed), None, held, labels[chosen], known, names)
        # Batch statistics need mixed classes, whatever the order the images came in.
        own = HeldImages(sample.images[_order(len(labels), seed)])
        return cls(own, len(own), held, labels[chosen], known, names)

    def first(self, facts: dict[str, Any], most: int) -> Iterable[Tensor]:
        """The first `most` training images, preprocessed, in batches; all of them if fewer were read."""
        images, count = self.images.first(most), self._at_most(most)
        if isinstance(images, PartImages):
            images.hold = True  # they are seen once for each layer
        return _Again(images, count, self._batch(facts), facts)

    def batches(self, facts: dict[str, Any], most: int) -> Iterator[Tensor]:
        """Preprocessed batches of equal size: a small last one would count as much as the others."""
        size = self._batch(facts)
        return iter(_Again(self.images.first(most * size), self._at_most(most * size), size, facts))

    def _at_most(self, most: int) -> int | None:
        return None if self.count is None else min(most, self.count)

    def _batch(self, facts: dict[str, Any]) -> int:
        size = self.scoring.example(facts).shape[-1] if self.scoring.preprocessed else facts["input_size"]
        return max(2, min(REESTIMATION_BATCH, images_a_batch(size)))  # moments of one image say little


@dataclass(frozen=True)
class _Again:
    """Batches of equal size, as often as they are asked for."""

    images: Images
    count: int | None
    size: int
    facts: dict[str, Any]

    def __iter__(self) -> Iterator[Tensor]:
        return equal_batches(self.images.batches(self.facts, self.size), self.size, self.count)


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def reestimation_batches(data: TaskDataModule, seed: int = 0) -> Iterator[Tensor]:
    """The batches on which `voted_backbone` re-estimates batch-norm statistics, for a fair rival's."""
    target = Target.read(data, len(data.facts.classes), REESTIMATION_BATCHES, seed)
    return target.batches(data.facts.to_dict(), REESTIMATION_BATCHES)
