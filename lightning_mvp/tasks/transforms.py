"""How training images are changed: from one opened image to what the model sees, by a name or a callable."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_mvp.tasks.facts import TaskFacts

# Shifts and mirrors are drawn for a whole epoch at once, so that small images in memory are cut by a few operations.
SHIFTS = ("none", "crop", "crop_flip")
AUGMENTATIONS = (*SHIFTS, "imagenet", "randaug")
Augment: TypeAlias = "str | Mapping[str, Any] | Callable[[Any], Any]"


def random_transform(augment: Augment, facts: TaskFacts) -> Callable[[Tensor], Tensor] | None:
    """What changes one training image at random; None where shifts and mirrors do, which the loader draws.

    Args:
        augment: ``"imagenet"`` (a random part of 8 to 100 % of the image, scaled to the input size, and mirrored or
            not), ``"randaug"`` (the same, then torchvision's ``RandAugment``), another name of
            :data:`AUGMENTATIONS`; or a callable, or a mapping with its ``_target_``, that takes a Pillow image and
            returns one, or a tensor: uint8 ``(C, S, S)``, or float that is normalised already.
        facts: the task's input size and interpolation.

    Returns:
        uint8 ``(C, H, W)`` → ``(C, S, S)``, uint8 or float.

    Example:
        >>> facts = TaskFacts("pets", ("cat", "dog"), 8, (0.5,) * 3, (0.25,) * 3)
        >>> tuple(random_transform("imagenet", facts)(torch.zeros(3, 20, 30, dtype=torch.uint8)).shape)
        (3, 8, 8)
    """
    if isinstance(augment, str):
        if augment in SHIFTS:
            return None
        how = v2.InterpolationMode(facts.interpolation)
        steps: list[Any] = [v2.RandomResizedCrop(facts.input_size, interpolation=how, antialias=True)]
        steps += [
            v2.RandomHorizontalFlip(),
            *([v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)] if augment == "randaug" else []),
        ]
        return v2.Compose(steps)
    return _OfPictures(_made(augment), facts)


class _OfPictures:
    """A callable of somebody's own, which takes and gives Pillow images as the ecosystem's transforms do."""

    def __init__(self, call: Callable[[Any], Any], facts: TaskFacts) -> None:
        self.call, self.shape = call, (facts.channels, facts.input_size, facts.input_size)

    def __call__(self, image: Tensor) -> Tensor:
        given = self.call(F.to_pil_image(image))
        tensor = given if isinstance(given, Tensor) else F.pil_to_tensor(given)
        if tuple(tensor.shape) != self.shape or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
            raise ValueError(
                f"Expected the callable of argument `augment` to give images uint8 or float of shape {self.shape}, but "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}. Let it end with a crop or resize to that size."
            )
        plain = tensor.as_subclass(Tensor)
        return plain.float() if plain.is_floating_point() else plain


def _made(augment: Mapping[str, Any] | Callable[[Any], Any]) -> Callable[[Any], Any]:
    made: Any = augment
    if isinstance(augment, Mapping):
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        try:
            made = instantiate(dict(augment), _convert_="all") if "_target_" in augment else None
        except InstantiationException as error:
            raise ValueError(
                f"Expected argument `augment` to be made of {dict(augment)}, but got: {error.__cause__ or error}"
            ) from error
    if not callable(made):
        raise ValueError(
            f"Expected argument `augment` to be one of {AUGMENTATIONS}, a callable, or {{_target_: package.callable}}, "
            f"but got {augment!r}."
        )
    return made


def require_augment(augment: Augment) -> None:
    """Check an argument `augment` before any work.

    Raises:
        ValueError: it is no known name, no callable, and no mapping whose `_target_` makes a callable.
    """
    if not isinstance(augment, str):
        _made(augment)
    elif augment not in AUGMENTATIONS:
        raise ValueError(
            f"Expected argument `augment` to be one of {AUGMENTATIONS}, a callable, or {{_target_: package.callable}}, "
            f"but got {augment!r}."
        )


def _seed(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python follow from a seed; afterwards they go on as they would have.

    In a loading process, where nobody else draws any, they don't: keeping their states takes longer than the seeds.
    """
    if get_worker_info() is not None:
        _seed(seed)
        yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    _seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
