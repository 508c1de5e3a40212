"""Prototypes of a task: the means of its classes' features, by which entries of a large zoo are found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.passes import Place, Where, pass_over
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts

# Images that prototypes are made of, if these are at least so many of each class.
PROTOTYPE_IMAGES = 500
LEAST_PER_CLASS = 2


def images_per_class(n_classes: int) -> int:
    """The number of images of each class that prototypes are made of, where there are so many.

    Example:
        >>> images_per_class(3), images_per_class(1000)
        (166, 2)
    """
    return max(PROTOTYPE_IMAGES // n_classes, LEAST_PER_CLASS)


class ClassMeans:
    """Means of features by class, of images that come batch by batch: sums are all that is kept of them.

    Args:
        n_classes: how many there are.

    Example:
        >>> means = ClassMeans(2)
        >>> means.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> means.means().tolist()
        [[2.0], [5.0]]
    """

    def __init__(self, n_classes: int) -> None:
        self.counts = torch.zeros(n_classes, dtype=torch.int64)
        self._sums: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add images to the sums of their classes.

        Args:
            features: float32 ``(n, D)``.
            labels: class indices ``(n,)``, or multi-hot ``(n, classes)``: an image counts for each label that it has.

        Raises:
            ValueError: features of another shape.
        """
        if features.ndim != 2:
            raise ValueError(f"Expected a backbone that gives features (n, D), but got {tuple(features.shape)}.")
        if self._sums is None:
            self._sums = features.new_zeros(len(self.counts), features.shape[1])
        if labels.ndim == 2:
            rows, labels = labels.nonzero(as_tuple=True)
            features = features[rows]
        self._sums.index_add_(0, labels, features)
        self.counts += labels.bincount(minlength=len(self.counts))

    def wanted(self, labels: Tensor, among: Collection[int] | None = None) -> Tensor:
        """The places of those images whose features are still needed.

        Args:
            labels: as :meth:`add` takes them; a negative class index marks an image whose class is not known.
            among: the classes that images are needed of; None: all.
        """
        quota, counts, rows = images_per_class(len(self.counts)), self.counts.tolist(), []
        for row, label in enumerate(labels.tolist()):
            own = [place for place, has in enumerate(label) if has] if labels.ndim == 2 else [label] * (label >= 0)
            if any(counts[place] < quota and (among is None or place in among) for place in own):
                rows.append(row)
                for place in own:
                    counts[place] += 1
        return torch.tensor(rows, dtype=torch.int64)

    @property
    def enough(self) -> bool:
        """Whether no more images are needed: every class has some, and all together as many as were asked for."""
        least, n_classes = int(self.counts.min()), len(self.counts)
        return least >= images_per_class(n_classes) or (
            least >= LEAST_PER_CLASS and int(self.counts.sum()) >= PROTOTYPE_IMAGES
        )

    @property
    def lacking(self) -> list[int]:
        """The classes without any image."""
        return (self.counts == 0).nonzero()[:, 0].tolist()

    def state_dict(self) -> dict[str, Tensor | None]:
        """Sums and counts."""
        return {"sums": self._sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor | None]) -> None:
        """Go on from :meth:`state_dict`."""
        sums, counts = state["sums"], state["counts"]
        assert counts is not None
        self._sums, self.counts = None if sums is None else sums.clone(), counts.clone()

    def share(self, place: Place) -> None:
        """Take the sums of all ranks that share a pass."""
        width = int(place.agreed(torch.tensor(0 if self._sums is None else self._sums.shape[1])))
        sums = torch.zeros(len(self.counts), width) if self._sums is None else self._sums
        self._sums, self.counts = place.summed(sums), place.summed(self.counts)

    def means(self) -> Tensor | None:
        """``(classes, D)`` on the CPU; None where a class has no image."""
        if self._sums is None or self.lacking:
            return None
        return self._sums / self.counts[:, None]


def task_means(dense: nn.Module, data: TaskDataModule, seen_by: TaskFacts, where: Where = None) -> ClassMeans:
    """Class means of a task's features. Its images are opened batch by batch.

    Args:
        dense: maps images to features.
        data: the task: equally many training images of every class are looked at, not augmented.
        seen_by: how the images are preprocessed: the zoo's preprocessing.
        where: who makes the pass; it is float32 anyway, as prototypes are compared with those of any machine.

    Raises:
        ValueError: features are not ``(n, D)``.
    """
    place, n_classes = replace(Place.at(where), precision="32-true"), len(data.facts.classes)
    part = data.scoring_part(n_classes * images_per_class(n_classes))
    means = ClassMeans(n_classes)
    with place.holding(dense):
        for images, labels in pass_over(data, part, place, seen_by):
            means.add(place.run(dense, images).cpu(), labels)
    means.share(place)
    return means
