"""Prototypes of a task: the means of its classes' features, by which entries of a large zoo are found."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import features_of
from lightning_mvp.backbones.passes import Place, Where, features_over, pass_over
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.recall import class_means

PROTOTYPE_IMAGES = 500


def prototypes_of(dense: nn.Module, data: TaskDataModule, where: Where = None) -> Tensor | None:
    """The prototypes of a task, ``(classes, features)`` on the CPU; None where the features are not ``(N, D)``.

    Args:
        dense: maps images to features.
        data: the task; at most :data:`PROTOTYPE_IMAGES` of its training images are seen, or one of each class.
        where: who makes the pass; it is float32 anyway, as prototypes are compared with those of any machine.
    """
    place, classes = replace(Place.at(where), precision="32-true"), len(data.facts.classes)
    part = data.scoring_part(max(PROTOTYPE_IMAGES, classes))
    features, labels = features_over(dense, pass_over(data, part, place), place)
    if features.ndim != 2:
        return None
    width = int(place.agreed(torch.tensor(features.shape[1])))
    sums = torch.zeros(classes, width).index_add_(0, labels, features.reshape(len(labels), width))
    return place.summed(sums) / place.summed(labels.bincount(minlength=classes))[:, None]


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
