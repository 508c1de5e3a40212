"""A target task as the models of a zoo see it: its images through each entry's own preprocessing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import evaluating, features_of
from lightning_mvp.backbones.inputs import one_sample
from lightning_mvp.backbones.units import Groups
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.rebuild import dense_backbone, refill
from lightning_mvp.zoo.zoo import ModelZoo


def require_takes(backbone: nn.Module, images: Tensor, argument: str) -> None:
    """Refuse images that a backbone can't take, such as those of another size than a vision transformer's.

    Args:
        backbone: maps images to features.
        images: ``(n, C, H, W)`` float, preprocessed; the first is tried.
        argument: where they come from, for the message.

    Raises:
        ValueError: it fails on them.

    Example:
        >>> require_takes(nn.Conv2d(3, 8, 1), torch.zeros(2, 1, 4, 4), "loader")
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `loader` to give images that the backbone takes, but Conv2d fails on ...
    """
    try:
        with evaluating(backbone):
            backbone(*one_sample((images,), backbone))
    except Exception as error:  # of any kind: it is somebody else's
        raise ValueError(
            f"Expected argument `{argument}` to give images that the backbone takes, but {type(backbone).__name__} "
            f"fails on an image of shape {tuple(images.shape[1:])} ({type(error).__name__}: {error}). Give images of "
            "its size and channels; raw ones, uint8, are brought to its size by the zoo's own preprocessing."
        ) from error


def as_input(images: Tensor, facts: dict[str, Any]) -> Tensor:
    """uint8 images through the preprocessing of these task facts; float images as they are."""
    return images if images.is_floating_point() else preprocess(images, TaskFacts.from_dict(facts))


def seen_by(facts: Mapping[str, Any]) -> str:
    """What of a task's facts decides how its model sees an image, as text."""
    return repr([value for name, value in sorted(facts.items()) if name not in ("name", "classes")])


@dataclass(eq=False)
class TargetData:
    """What a similarity may ask about a target task.

    Args:
        zoo: the zoo whose entries are compared with the task.
        images: ``(n, C, H, W)``, raw uint8 or float and preprocessed.
        labels: class indices ``(n,)`` or multi-hot ``(n, L)``.
        backbone: the zoo's dense backbone. Only its structure is used.
        groups: the groups of that backbone.
        names: all entries that may be chosen.
        classes: the names of the task's classes; None where they are not known.
        seed: of every random choice.
        batch_size: number of images in one forward pass.
        memory: what a similarity keeps of each entry until all entries are scored; empty at first.
    """

    zoo: ModelZoo
    images: Tensor
    labels: Tensor
    backbone: nn.Module = field(repr=False)
    groups: Groups = field(repr=False)
    names: Sequence[str]
    classes: Sequence[str] | None = None
    seed: int = 0
    batch_size: int = 128
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    _made: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def dense(self) -> nn.Module:
        """The dense backbone with the weights θ⁰, in eval mode."""
        return dense_backbone(self.zoo, self.backbone)

    @cached_property
    def shuffled_names(self) -> list[str]:
        """The names in an order drawn by the seed."""
        return np.random.default_rng(self.seed).permutation(sorted(self.names)).tolist()

    @cached_property
    def _scratch(self) -> nn.Module:
        """One copy of the backbone, which becomes the model of one entry after the other."""
        return copy.deepcopy(self.backbone).eval()

    def _seen_by(self, facts: Mapping[str, Any]) -> str:
        """What of these facts decides how a model sees the images: nothing, where they are preprocessed already."""
        return "" if self.images.is_floating_point() else seen_by(facts)

    def inputs(self, facts: Mapping[str, Any]) -> Tensor:
        """The images float ``(n, C, H, W)`` as a model of these facts sees them, made once for each preprocessing."""
        key = f"inputs {self._seen_by(facts)}"
        if key not in self._made:
            prepared = as_input(self.images, {"name": "any", "classes": ["any"], **facts})
            self._made[key] = prepared.contiguous(memory_format=torch.channels_last)
        return self._made[key]

    def features(self, facts: Mapping[str, Any]) -> Tensor:
        """Features ``(n, D)`` by θ⁰ on these inputs, computed once for each preprocessing."""
        key = f"features {self._seen_by(facts)}"
        if key not in self._made:
            self._made[key] = features_of(self.dense, self.inputs(facts), self.batch_size)
        return self._made[key]

    def probabilities(self, entry: ZooEntry) -> Tensor:
        """Probabilities ``(n, Z)`` of the entry's Z classes, by the entry's model on the images as it sees them.

        Raises:
            DamagedEntryError: the entry has no head or one that does not fit, or computes what is not finite.
        """
        head = refill(self._scratch, entry, self.groups)
        if head is None:
            raise DamagedEntryError(f"Expected entry {entry.name!r} to have a head, but it has none.")
        features = features_of(self._scratch, self.inputs(entry.facts), self.batch_size)
        if features.shape[1] != head.in_features:
            raise DamagedEntryError(
                f"Expected the head of entry {entry.name!r} to read {features.shape[1]} features, which its masks "
                f"leave, but it reads {head.in_features}. Remove the entry from its zoo and prune this task again."
            )
        with torch.no_grad():
            probabilities = head(features).double().softmax(1)
        if not torch.isfinite(probabilities).all():
            raise DamagedEntryError(
                f"Entry {entry.name!r} computes NaN or infinity from these images. Is one of both broken?"
            )
        return probabilities
