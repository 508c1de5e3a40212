"""The images of a target task, batch by batch, as a model of given facts sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.partition import Part
from lightning_mvp.tasks.preprocessing import preprocess

# Images of more bytes than that in float32 are not held so: 500 of 64 × 64 are, 500 of 224 × 224 are not.
HELD = 2**26
OPENED_AT_ONCE = 16  # images that are float32 while they are opened to be held


def as_input(images: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """uint8 images through the preprocessing of these task facts; float images as they are."""
    return images if images.is_floating_point() else preprocess(images, facts_of(facts))


def facts_of(facts: Mapping[str, Any]) -> TaskFacts:
    """Task facts, also of those that say only how an image is seen."""
    return TaskFacts.from_dict({"name": "any", "classes": ["any"], **facts})


class Images(Protocol):
    """Images that any number of passes may go over."""

    preprocessed: bool  # already: facts say nothing then

    def example(self, facts: Mapping[str, Any]) -> Tensor:
        """The first of them, preprocessed, ``(1, C, S, S)``; no other is opened."""

    def batches(self, facts: Mapping[str, Any], size: int) -> Iterator[Tensor]:
        """Preprocessed batches of `size` images, the last one perhaps of fewer."""

    def first(self, most: int) -> Images:
        """The first `most` of them."""


class HeldImages:
    """Images that somebody holds in memory anyway.

    Args:
        images: ``(n, C, H, W)``, raw uint8 or float and preprocessed.
    """

    def __init__(self, images: Tensor) -> None:
        self.images, self.preprocessed = images, images.is_floating_point()

    def __len__(self) -> int:
        return len(self.images)

    def example(self, facts: Mapping[str, Any]) -> Tensor:
        return as_input(self.images[:1], facts)

    def batches(self, facts: Mapping[str, Any], size: int) -> Iterator[Tensor]:
        return (as_input(part, facts) for part in self.images.split(size))

    def first(self, most: int) -> HeldImages:
        return HeldImages(self.images[:most])


class PartImages:
    """Images of a task, opened batch by batch in each pass.

    Args:
        data: the task.
        part: which of its images, in which order.
        hold: open each image once for each size and crop, for many passes: small ones are kept as float32, large ones
            rounded to uint8. They are normalised batch by batch.
    """

    preprocessed = False

    def __init__(self, data: TaskDataModule, part: Part, hold: bool = False) -> None:
        self.data, self.part, self.hold = data, part, hold
        self._pixels: dict[tuple[Any, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self.part)

    def example(self, facts: Mapping[str, Any]) -> Tensor:
        return next(iter(self.data.pass_loader(self.part[torch.arange(1)], facts_of(facts), 1)))[0]

    def batches(self, facts: Mapping[str, Any], size: int) -> Iterator[Tensor]:
        seen = facts_of(facts)
        if not self.hold:
            yield from (images for images, _ in self.data.pass_loader(self.part, seen, size))
            return
        for part in self._opened(seen).split(size):
            shares = part.float().div_(255) if part.dtype == torch.uint8 else part
            mean, std = (shares.new_tensor(values).view(1, -1, 1, 1) for values in (seen.mean, seen.std))
            yield (shares - mean).div_(std)

    def first(self, most: int) -> PartImages:
        return PartImages(self.data, self.part[torch.arange(min(most, len(self)))], self.hold)

    def _opened(self, facts: TaskFacts) -> Tensor:
        """All images resized and cropped: float32 in [0, 1], or uint8."""
        key = (facts.input_size, facts.crop, facts.interpolation, facts.channels)
        if key not in self._pixels:
            plain = replace(facts, mean=(0.0,) * facts.channels, std=(1.0,) * facts.channels)
            shape = (len(self), facts.channels, facts.input_size, facts.input_size)
            large = 4 * math.prod(shape) > HELD
            pixels = torch.empty(shape, dtype=torch.uint8 if large else torch.float32)
            done = 0
            for images, _ in self.data.pass_loader(self.part, plain, OPENED_AT_ONCE):
                pixels[done : done + len(images)] = images.mul_(255).round_().clamp_(0, 255) if large else images
                done += len(images)
            self._pixels[key] = pixels
        return self._pixels[key]


class StreamedImages:
    """Images that a loader gives anew in each pass.

    Args:
        loader: gives ``(images, labels)``.
        most: images of a pass at most.
        preprocessed: whether its images are floats.
    """

    def __init__(self, loader: Iterable[Any], most: int, preprocessed: bool) -> None:
        self.loader, self.most, self.preprocessed = loader, most, preprocessed

    def example(self, facts: Mapping[str, Any]) -> Tensor:
        return next(self.first(1).batches(facts, 1))

    def batches(self, facts: Mapping[str, Any], size: int) -> Iterator[Tensor]:
        seen = 0
        for batch in self.loader:
            for part in batch[0][: self.most - seen].split(size):
                seen += len(part)
                yield as_input(part.cpu(), facts)
            if seen >= self.most:
                return

    def first(self, most: int) -> StreamedImages:
        return StreamedImages(self.loader, min(most, self.most), self.preprocessed)


class Converted:
    """A loader whose batches are taken for something else.

    Args:
        loader: any iterable that can be gone over again.
        batch_to: called with each batch.
    """

    def __init__(self, loader: Any, batch_to: Callable[[Any], Any]) -> None:
        self.loader, self.batch_to = loader, batch_to

    def __iter__(self) -> Iterator[Any]:
        return map(self.batch_to, self.loader)


def equal_batches(batches: Iterable[Tensor], size: int, images: int | None = None) -> Iterator[Tensor]:
    """The images of batches of any size in batches of one size, as far as that goes.

    Args:
        batches: images.
        size: the most images of a batch.
        images: how many there are in all: they are shared out to batches that differ by one at most. None: not known;
            the rest that fills less than half of a batch is left out then, unless it is all there is.

    Example:
        >>> [len(batch) for batch in equal_batches([torch.zeros(4)] * 2, 3, 8)]
        [3, 3, 2]
        >>> [len(batch) for batch in equal_batches([torch.zeros(4)] * 2, 7)]
        [7]
    """
    count = None if images is None else math.ceil(images / size)
    sizes = iter(()) if images is None else (images // count + (turn < images % count) for turn in range(count))  # type: ignore[arg-type,operator]
    held: list[Tensor] = []
    wanted, given = next(sizes, size), False
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= wanted:
            whole = torch.cat(held) if len(held) > 1 else held[0]
            yield whole[:wanted]
            given, held = True, [whole[wanted:]] if len(whole) > wanted else []
            wanted = next(sizes, size)
    left = sum(map(len, held))
    if left and (not given or 2 * left >= max(size, 4) or images is not None):
        yield torch.cat(held)
