"""Prototypes of a task: the means of its classes' features, by which entries of a large zoo are found."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_mvp.backbones.features import features_of
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.recall import class_means

PROTOTYPE_IMAGES = 500


def prototype_images(data: TaskDataModule) -> tuple[Tensor, Tensor]:
    """Images of a task for its prototypes, preprocessed, and their labels."""
    images, labels = data.scoring_images(max(PROTOTYPE_IMAGES, len(data.facts.classes)))
    return preprocess(images, data.facts), labels


def means_of_features(dense: nn.Module, images: Tensor, labels: Tensor, n_classes: int) -> Tensor | None:
    """Class means of features, ``(classes, features)``, on the CPU; None where a class has no image.

    Args:
        dense: maps images to features.
        images: preprocessed, ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        n_classes: how many there are.
    """
    features, labels = features_of(dense, images.cpu()), labels.cpu()
    if features.ndim != 2 or set(labels.tolist()) != set(range(n_classes)):
        return None
    return class_means(features, labels)
