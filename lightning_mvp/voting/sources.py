"""A target task as the models of a zoo see it: its images through each entry's own preprocessing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.inputs import one_sample
from lightning_mvp.backbones.passes import Place, features_over, images_a_batch
from lightning_mvp.backbones.units import Groups
from lightning_mvp.voting.target_images import HeldImages, Images, facts_of
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


def seen_by(facts: Mapping[str, Any]) -> str:
    """What of a task's facts decides how its model sees an image, as text."""
    return repr([value for name, value in sorted(facts.items()) if name not in ("name", "classes")])


@dataclass(eq=False)
class TargetData:
    """What a similarity may ask about a target task.

    Args:
        zoo: the zoo whose entries are compared with the task.
        images: the images that decide: ``(n, C, H, W)``, raw uint8 or float and preprocessed; or
            :class:`~lightning_mvp.voting.target_images.Images`, which are opened when they are asked for.
        labels: class indices ``(n,)`` or multi-hot ``(n, L)``.
        backbone: the zoo's dense backbone. Only its structure is used.
        groups: the groups of that backbone.
        names: all entries that may be chosen.
        classes: the names of the task's classes; None where they are not known.
        seed: of every random choice.
        batch_size: the most images in one forward pass; fewer of large images.
        place: where models run.
        theta0: the dense backbone with the weights θ⁰, where somebody has it already; None: it is built when it is
            asked for.
        memory: what a similarity keeps of each entry until all entries are scored; empty at first.
    """

    zoo: ModelZoo
    images: Images | Tensor
    labels: Tensor
    backbone: nn.Module = field(repr=False)
    groups: Groups = field(repr=False)
    names: Sequence[str]
    classes: Sequence[str] | None = None
    seed: int = 0
    batch_size: int = 128
    place: Place = field(default_factory=Place)
    theta0: nn.Module | None = field(default=None, repr=False)
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def seen(self) -> Images:
        """The images, for passes."""
        return HeldImages(self.images) if isinstance(self.images, Tensor) else self.images

    @cached_property
    def dense(self) -> nn.Module:
        """The dense backbone with the weights θ⁰, in eval mode."""
        return dense_backbone(self.zoo, self.backbone) if self.theta0 is None else self.theta0

    @cached_property
    def shuffled_names(self) -> list[str]:
        """The names in an order drawn by the seed."""
        return np.random.default_rng(self.seed).permutation(sorted(self.names)).tolist()

    @cached_property
    def _scratch(self) -> nn.Module:
        """One copy of the backbone where models run, which becomes the model of one entry after the other."""
        scratch = copy.deepcopy(self.backbone).eval()
        return scratch if self.place.device is None else scratch.to(self.place.device)

    def batches(self, facts: Mapping[str, Any]) -> Iterator[Tensor]:
        """The images in float batches ``(B, C, S, S)`` as a model of these facts sees them."""
        size = self.seen.example(facts).shape[-1] if self.seen.preprocessed else facts_of(facts).input_size
        return self.seen.batches(facts, min(self.batch_size, images_a_batch(size, self.place.device)))

    def features(self, facts: Mapping[str, Any]) -> Tensor:
        """Features ``(n, D)`` by θ⁰ on these images, computed once for each preprocessing."""
        key = "" if self.seen.preprocessed else seen_by(facts)
        if key not in self._features:
            self._features[key] = self._run(self.dense, facts)
        return self._features[key]

    def _run(self, model: nn.Module, facts: Mapping[str, Any]) -> Tensor:
        return features_over(model, ((images, torch.empty(0)) for images in self.batches(facts)), self.place)[0]

    def probabilities(self, entry: ZooEntry) -> Tensor:
        """Probabilities ``(n, Z)`` of the entry's Z classes, by the entry's model on the images as it sees them.

        Raises:
            DamagedEntryError: the entry has no head or one that does not fit, or computes what is not finite.
        """
        head = refill(self._scratch, entry, self.groups)
        if head is None:
            raise DamagedEntryError(f"Expected entry {entry.name!r} to have a head, but it has none.")
        features = self._run(self._scratch, entry.facts)
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
