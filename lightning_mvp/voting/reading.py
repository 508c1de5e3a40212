"""Images and labels read from any loader: enough of them, and of every class, also where classes come in turn."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mvp.voting.labels import as_labels
from lightning_mvp.words import counted

# The most batches that are read from a loader whose first batches don't show all classes.
MOST_BATCHES = 1000


@dataclass(frozen=True)
class Sample:
    """Images and labels of a loader.

    Args:
        images: ``(n, C, H, W)`` on the CPU.
        labels: as :func:`~lightning_mvp.voting.labels.as_labels` gives them.
        missing: names of the classes that the data set has and of which no image was seen.
    """

    images: Tensor
    labels: Tensor
    missing: tuple[str, ...] = ()


def read_sample(
    loader: Iterable[Any],
    *,
    wanted: int,
    batches: int = MOST_BATCHES,
    first_images: int | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    labels_matter: bool = True,
    argument: str = "loader",
) -> Sample:
    """The first batches of a loader; where these lack classes, a sample of more, with as many images of each class.

    After the first batches further ones are read, at most :data:`MOST_BATCHES` in all, if a known class has not been
    seen, if images of one class follow each other, or if nearly every image is of another class. No more images are
    kept than the first batches have, or ``wanted`` if that is more. A warning says what was found.

    Args:
        loader: gives ``(images, labels)`` and perhaps more.
        wanted: number of images that are needed.
        batches: the most batches that are read first. Of a loader in shuffled order no others are read.
        first_images: stop reading the first batches once there are so many images, and keep so many of them. None keeps
            all images of the first batches.
        classes: names of all classes, in the order of their indices; None where they are not known.
        seed: seed of the sample.
        labels_matter: whether anything is decided by labels. If false, any labels will do.
        argument: name of the loader in messages.

    Raises:
        ValueError: no batch, batches of another form, or labels that are no classes.

    Example:
        >>> loader = [(torch.zeros(4, 3, 2, 2), torch.full((4,), label)) for label in (0, 0, 0, 1, 2)]
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     read_sample(loader, batches=1, wanted=12).labels.bincount()
        tensor([4, 4, 4])
    """
    rest = iterated(loader, argument)
    first: list[tuple[Tensor, Tensor]] = []
    for batch in itertools.islice(rest, batches):
        first.append(pair_of(batch, argument))
        if first_images is not None and sum(len(labels) for _, labels in first) >= first_images:
            break
    if not sum(len(labels) for _, labels in first):
        raise ValueError(
            f"Expected argument `{argument}` to give at least one batch of training data, but it gave none."
        )
    shapes = sorted({tuple(labels.shape[1:]) for _, labels in first})
    if len(shapes) > 1:
        raise ValueError(f"Expected argument `{argument}` to give labels of one shape per image, but got {shapes}.")
    images, raw = (torch.cat(parts)[:first_images] for parts in zip(*first, strict=True))
    try:
        labels = as_labels(raw)
    except ValueError:
        if labels_matter:
            raise
        return Sample(images, torch.arange(len(raw)))
    seen = _Classes(labels, classes, wanted)
    seen_first, read, most = seen.words(), len(first), max(len(labels), wanted)
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(len(labels), generator=generator)  # within a class the images of the least numbers are kept
    while seen.lacking and read < MOST_BATCHES and (batch := next(rest, None)) is not None:
        more, raw = pair_of(batch, argument)
        new, read = as_labels(raw), read + 1
        seen.add(new)
        drawn = torch.rand(len(new), generator=generator)
        kept = _evenly(torch.cat([labels, new]), most, torch.cat([places, drawn]).argsort())
        images, labels, places = (
            _exchange(old, other, kept) for old, other in ((images, more), (labels, new), (places, drawn))
        )
    if seen.in_runs and read > len(first):
        warnings.warn(
            f"Expected argument `{argument}` in shuffled order, but it gives one class after the other: its first "
            f"{len(first)} batches hold {seen_first} only. {read} batches were read"
            + (", the most that are" if read == MOST_BATCHES else "")
            + f", with {seen.words()}; any other was not seen. Shuffle it: DataLoader(..., shuffle=True).",
            stacklevel=5,
        )
    if labels.ndim == 1 and 255 in seen.counts and max({*seen.counts} - {255}, default=255) < 254:
        warnings.warn(
            f"Labels of argument `{argument}` hold 255 far above the others: it counts as a class. If it marks images "
            "whose class is not known, leave these out: ((images[labels != 255], labels[labels != 255]) for ...).",
            stacklevel=5,
        )
    missing = seen.missing
    if missing:
        warnings.warn(
            f"No image of {counted(len(missing), 'class', 'classes')} was seen in the {read} batches that were read "
            f"of `{argument}`: {_few(missing)}.",
            stacklevel=5,
        )
    return Sample(images, labels, missing)


class _Classes:
    """Which classes were seen so far, and whether further batches have to be read.

    Args:
        labels: the labels of the first batches, in their order.
        names: the names of all classes; None where they are not known.
        wanted: number of images that are needed.
    """

    def __init__(self, labels: Tensor, names: Sequence[str] | None, wanted: int) -> None:
        several = labels.ndim == 2
        fits = names is not None and not several and 0 <= int(labels.min()) <= int(labels.max()) < len(names)
        self.names = tuple(names) if names is not None and fits else None
        self.in_runs, self.wanted, self.total = _in_runs(labels), wanted, 0
        self.counts: Counter[int] = Counter()
        self.add(labels)

    def add(self, labels: Tensor) -> None:
        self.total += len(labels)
        found = labels.nonzero()[:, 1] if labels.ndim == 2 else labels
        self.counts.update(dict(zip(*(part.tolist() for part in found.unique(return_counts=True)), strict=True)))

    @property
    def lacking(self) -> bool:
        if self.missing:
            return True
        if self.in_runs:  # without names it is not known which classes are still to come
            return self.names is None or min(self.counts.values()) < self.wanted // len(self.names)
        return self.total < min(2 * len(self.counts), self.wanted)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for index, name in enumerate(self.names or ()) if index not in self.counts)

    def words(self) -> str:
        """The classes that were seen, a few of them by name or number."""
        noun = "class" if len(self.counts) == 1 else "classes"
        return f"{noun} {_few([repr(self.names[at]) if self.names else str(at) for at in sorted(self.counts)])}"


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:10]) + (f" and {len(words) - 10} more" if len(words) > 10 else "")


def _in_runs(labels: Tensor) -> bool:
    """Whether images of one class follow each other: fewer than a quarter of the changes that a shuffled order has."""
    _, index, counts = labels.unique(dim=0, return_inverse=True, return_counts=True)
    changes = int((index[1:] != index[:-1]).sum())
    shuffled = float((len(labels) - 1) * (1 - (counts.double() / len(labels)).square().sum()))
    return len(counts) == 1 or changes < shuffled / 4


def balanced_subset(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Indices of at most `n` images, as equal in number per class as the labels allow, drawn by `seed`.

    Of multi-hot labels ``(N, L)``, an image counts for the rarest label that it has; images without any are one more
    class.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
        >>> labels[balanced_subset(labels, 4)].tolist()
        [0, 0, 1, 1]
    """
    return _evenly(labels, n, torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)))


def _evenly(labels: Tensor, n: int, order: Tensor) -> Tensor:
    """Indices of at most ``n`` images, ascending: of each class those that come first in ``order``."""
    if labels.ndim == 2:
        present = labels > 0
        rarity = torch.where(present, present.sum(0), len(labels) + 1)
        labels = torch.where(present.any(1), rarity.argmin(1), labels.shape[1])
    alike, counts = labels[order].argsort(stable=True), labels.unique(return_counts=True)[1]
    turn = torch.empty_like(order)  # an image's place among those of its class
    turn[order[alike]] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[turn[order].argsort(stable=True)[:n]].sort().values


def _exchange(old: Tensor, new: Tensor, kept: Tensor) -> Tensor:
    """The kept ones of old and new, written into `old` as far as that goes, since images may fill the memory."""
    stays = torch.zeros(len(old) + len(new), dtype=torch.bool)
    stays[kept] = True
    gone, come = (~stays[: len(old)]).nonzero()[:, 0], stays[len(old) :].nonzero()[:, 0]
    old[gone] = new[come[: len(gone)]]
    return torch.cat([old, new[come[len(gone) :]]]) if len(come) > len(gone) else old


def iterated(loader: Any, argument: str) -> Iterator[Any]:
    """The loader's batches; what is no iterable is refused."""
    try:
        return iter(loader)
    except TypeError as error:
        raise ValueError(
            f"Expected argument `{argument}` to be a TaskDataModule or an iterable of (images, labels), but got a "
            f"{type(loader).__name__}. Of a LightningDataModule of your own, pass its train_dataloader()."
        ) from error


def pair_of(batch: Any, argument: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, on the CPU; what has another form is refused with the way to wrap its loader."""
    if isinstance(batch, Mapping):
        raise ValueError(
            f"Expected argument `{argument}` to give (images, labels) tensors, but got a dict with keys {list(batch)}. "
            "Wrap it with your own keys: ((batch['image'], batch['label']) for batch in loader)."
        )
    sequence = isinstance(batch, (tuple, list))
    if sequence and len(batch) > 1 and isinstance(batch[1], (tuple, list)) and isinstance(next(iter(batch[1]), 0), str):
        as_labels(batch[1])  # which says what to do with names
    if not sequence or len(batch) < 2 or not all(isinstance(x, Tensor) for x in batch[:2]):
        got = type(batch).__name__
        if sequence:
            got += f" of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
        raise ValueError(
            f"Expected argument `{argument}` to give (images, labels) tensors, but got a {got}. Wrap it so that it "
            "does: ((images, labels) for ... in loader)."
        )
    images, labels = batch[:2]
    if images.ndim != 4 or labels.ndim not in (1, 2) or len(labels) != len(images):
        raise ValueError(
            f"Expected argument `{argument}` to give images (n, C, H, W) with labels (n,) or multi-hot (n, L), but got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}."
        )
    return images.cpu(), labels.cpu()


def class_names(loader: Any) -> tuple[str, ...] | None:
    """The names of a loader's classes as torchvision's data sets have them, or None.

    They are not known where ``target_transform`` changes the labels, or where a subset of a data set was taken.
    """
    dataset = getattr(loader, "dataset", None)
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if getattr(dataset, "target_transform", None) is None else None
