"""Prototypes of a task: the means of its classes' features, by which entries of a large zoo are found."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import features_of
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts

# Images that prototypes are made of, if these are at least so many of each class.
PROTOTYPE_IMAGES = 500
LEAST_PER_CLASS = 2
# Images of one pass: at most so many, and at most so many pixels, since a dense backbone's activations are large.
BATCH, BATCH_PIXELS = 256, 1 << 20


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

    def means(self) -> Tensor | None:
        """``(classes, D)`` on the CPU; None where a class has no image."""
        if self._sums is None or not bool((self.counts > 0).all()):
            return None
        return self._sums / self.counts[:, None]


def task_prototypes(dense: nn.Module, data: TaskDataModule, seen_by: TaskFacts) -> Tensor | None:
    """Class means of a task's features, ``(classes, features)`` on the CPU. Its images are opened batch by batch.

    Args:
        dense: maps images to features; they are computed on its device.
        data: the task: equally many training images of every class are looked at, not augmented.
        seen_by: how the images are preprocessed: the zoo's preprocessing.

    Returns:
        The prototypes; None where features are not ``(n, D)``.
    """
    n_classes = len(data.facts.classes)
    part = data.scoring_part(n_classes * images_per_class(n_classes))
    batch_size = max(1, min(BATCH, BATCH_PIXELS // seen_by.input_size**2))
    means = ClassMeans(n_classes)
    for images, labels in data.pass_loader(part, seen_by, batch_size=batch_size):
        features = features_of(dense, images)
        if features.ndim != 2:
            return None
        means.add(features, labels)
    return means.means()
