"""One train/val/test partition per data set and seed, and nothing shared between its parts. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.tasks.images import BrokenImageError, Images


@dataclass(frozen=True, eq=False)
class Part:
    """Images and their labels. Shared within the process: don't write to them.

    Args:
        images: uint8 (N, C, H, W); or images that are opened when they are asked for.
        labels: int64 (N,).

    Raises:
        ValueError: for other dtypes or shapes.
    """

    images: Tensor | Images
    labels: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor) and (self.images.dtype != torch.uint8 or self.images.ndim != 4):
            raise ValueError(
                "Expected argument `images` to be a uint8 tensor of shape (N, C, H, W), "
                f"but got {self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise ValueError(
                f"Expected argument `labels` to be an int64 tensor of shape ({len(self.images)},), "
                f"but got {self.labels.dtype} of shape {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Part:
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        if isinstance(self.images, Images):
            return Part(self.images.select(index), self.labels[index])
        # index_select is twice as fast as images[index].
        return Part(self.images.index_select(0, index), self.labels.index_select(0, index))

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, Tensor)

    def open(self, index: int) -> Tensor:
        """One image, uint8 (C, H, W)."""
        return self.images[index] if isinstance(self.images, Tensor) else self.images.open(index)


# So many images of a set that is not in memory give its mean and standard deviation.
MOMENT_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: its classes, its three parts, and what images are normalised with.

    Args:
        name: of the data set.
        classes: names, in the order of the labels.
        train: what learns and chooses.
        val: what measures on the way.
        test: what measures at the end.
        mean: of each channel, in [0, 1]; None takes those of the train part, of images that are opened when they are
            asked for from :data:`MOMENT_IMAGES` of them, once somebody asks.
        std: standard deviation of each channel; None takes it likewise.
        image_size: height and width of images that are opened when they are asked for, if they are known; those of
            images in memory are their own.
        about: a short text that tells one selection of images from another: options and seed, no folder.

    Raises:
        ValueError: if parts in memory differ in image shape, or their images aren't square; if a label has no class,
            train is empty, or `mean` or `std` is not of one number in [0, 1] (0 excluded for `std`) for each channel.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    # Factories, because a plain default would be found on the class, where `__getattr__` shall measure it.
    mean: tuple[float, ...] = field(default_factory=lambda: None)  # type: ignore[arg-type, return-value]
    std: tuple[float, ...] = field(default_factory=lambda: None)  # type: ignore[arg-type, return-value]
    image_size: int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if not len(self.train):
            raise ValueError(f"Expected data set {self.name!r} to have training images, but got none.")
        if self.in_memory:
            self._require_one_shape()
        for part_name in ("train", "val", "test"):
            part = getattr(self, part_name)
            if len(part) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(self.classes):
                raise ValueError(
                    f"Expected {part_name} labels of data set {self.name!r} to be in [0, {len(self.classes)}), "
                    f"but got {int(part.labels.min())} to {int(part.labels.max())}."
                )
        for name in ("mean", "std"):
            given = self.__dict__.pop(name)  # what is missing is measured once somebody asks for it
            if given is not None:
                object.__setattr__(self, name, self._checked(name, given))
        if self.in_memory:
            object.__setattr__(self, "image_size", self.train.images.shape[-1])  # type: ignore[union-attr]

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded already."""
        return self.train.in_memory

    def described(self) -> dict[str, str]:
        """What a zoo entry keeps of the data set that its task is of."""
        return {"data": self.about} if self.about else {}

    def loaded(self) -> ImageData:
        """The same with all images in memory, and without train and val images that equal another part's.

        Raises:
            BrokenImageError: an image can't be read.
            ValueError: images of several sizes.
        """
        if self.in_memory:
            return self
        train, val, test = (_opened(part, self.name) for part in (self.train, self.val, self.test))
        train, val = drop_duplicates(train, val, test)
        given = {name: self.__dict__.get(name) for name in ("mean", "std")}
        return replace(self, train=train, val=val, test=test, **given)  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        """Channels of each image; images that are opened when they are asked for are RGB."""
        return self.train.images.shape[1] if isinstance(self.train.images, Tensor) else 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, where they are known."""
        assert self.image_size is not None, "images of a size of their own each have a shape of their own"
        return self.channels, self.image_size, self.image_size

    def _require_one_shape(self) -> None:
        shapes = {name: tuple(getattr(self, name).images.shape[1:]) for name in ("train", "val", "test")}
        shape = shapes["train"]
        if shape[1] != shape[2]:
            raise ValueError(
                f"Expected data set {self.name!r} to have square images, but got {shape[1]} × {shape[2]}. "
                "Set `image_size`."
            )
        for name, other in shapes.items():
            if other != shape:
                raise ValueError(
                    f"Expected {name} images of data set {self.name!r} to have shape {shape}, "
                    f"but got {other}. Set `image_size`."
                )

    def _checked(self, name: str, given: Sequence[float]) -> tuple[float, ...]:
        own = tuple(float(value) for value in given)
        if len(own) != self.channels or not all(0 <= value <= 1 for value in own) or (name == "std" and 0 in own):
            raise ValueError(
                f"Expected argument `{name}` to be {self.channels} numbers in [0, 1], one for each channel of data "
                f"set {self.name!r}{', above 0' if name == 'std' else ''}, but got {list(own)}."
            )
        return own

    def __getattr__(self, name: str) -> tuple[float, ...]:
        if name not in ("mean", "std"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        for which, own in zip(("mean", "std"), _moments(self.train), strict=True):
            if which not in self.__dict__:
                object.__setattr__(self, which, own)
        return getattr(self, name)


def _opened(part: Part, name: str) -> Part:
    images = [part.open(index) for index in range(len(part))]
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"Expected images of one size in data set {name!r}, but got {shapes[0]} and {shapes[-1]}. Set `image_size`."
        )
    return Part(torch.stack(images), part.labels)


def _moments(part: Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel in [0, 1] from the histogram of the 256 values: exact, and without a float copy.

    Of images that are opened when they are asked for, some are taken at random, and each counts as much as any other.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    if isinstance(part.images, Tensor):
        shares = _histogram(part.images)
    else:
        chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:MOMENT_IMAGES]
        shares = torch.zeros(3, 256, dtype=torch.float64)
        for index in chosen.sort().values.tolist():
            with suppress(BrokenImageError):  # who trains on it is told
                counts = _histogram(part.open(index)[None])
                shares += counts / counts.sum(1, keepdim=True)
    shares /= shares.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _histogram(images: Tensor) -> Tensor:
    """How often each channel has each of the 256 values: ``(C, 256)``."""
    return torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]).double()


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into (kept, drawn): from every class, `round_half_up(fraction · n)` of its n images are drawn.

    At least one image of a class is drawn if `fraction` > 0, and at least one is kept. Both results ascend.

    Args:
        labels: int64 (N,).
        fraction: in [0, 1).
        seed: the draw follows from it and from the labels.

    Raises:
        ValueError: if `fraction` is outside [0, 1).

    Example:
        >>> kept, drawn = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
        >>> len(kept), len(drawn)
        (3, 3)
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"Expected argument `fraction` to be a float in [0, 1), but got {fraction}.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = min(max(int(fraction * len(members) + 0.5), 1 if fraction else 0), len(members) - 1)
        drawn[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~drawn).nonzero().flatten(), drawn.nonzero().flatten()


def image_hashes(images: Tensor) -> list[bytes]:
    """One 16-byte hash per image: equal if and (for all purposes) only if the images are byte-equal."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.contiguous().numpy()]


def drop_duplicates(train: Part, val: Part, test: Part) -> tuple[Part, Part]:
    """Train and val without images that are byte-equal to one they must not know.

    Val loses what is in test, train loses what is in val or test, whatever the labels: a test image stays unseen even
    if the data set holds it twice. Images that are opened when they are asked for are compared by their files' content.

    Example:
        >>> def pixel(*values):
        ...     images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
        ...     return Part(images, torch.zeros(len(values), dtype=torch.int64))
        >>> train, val = drop_duplicates(pixel(1, 2, 3), pixel(2, 4), pixel(3, 4))
        >>> train.images.flatten().tolist(), val.images.flatten().tolist()
        ([1], [2])
    """
    if isinstance(train.images, Tensor) and isinstance(val.images, Tensor) and isinstance(test.images, Tensor):
        keys = [image_keys(images) for images in (train.images, val.images, test.images)]
        new_val = _unlike(val.images, keys[1], ((test.images, keys[2]),))
        new_train = _unlike(train.images, keys[0], ((val.images, keys[1]), (test.images, keys[2])))
    else:
        new_train, new_val = _unlike_files(train, val, test)
    return _kept(train, new_train), _kept(val, new_val)


def _unlike_files(train: Part, val: Part, test: Part) -> tuple[np.ndarray, np.ndarray]:
    """Which train and val images have a content that no image has which they must not know.

    Only contents whose size occurs in more than one part are read. Equal pixels in different files pass.
    """
    parts = [part.images for part in (train, val, test)]
    assert all(isinstance(images, Images) for images in parts)
    sizes = [[images.content_size(i) for i in range(len(images))] for images in parts]  # type: ignore[union-attr]
    known: set[bytes] = set()
    fresh = []
    for which in (2, 1, 0):
        others = {size for other in range(3) if other != which for size in sizes[other]} - {None}
        new = np.ones(len(sizes[which]), dtype=bool)
        own: set[bytes] = set()
        for i, size in enumerate(sizes[which]):
            if size in others:
                content = hashlib.blake2b(parts[which].content(i), digest_size=16).digest()  # type: ignore[union-attr]
                new[i] = content not in known
                own.add(content)
        known |= own
        fresh.append(new)
    return fresh[2], fresh[1]


def image_keys(images: Tensor) -> np.ndarray:
    """One uint64 per image, equal for byte-equal images, and for very few others: which images need comparing.

    Args:
        images: uint8 ``(N, C, H, W)``, in any memory layout.
    """
    flat = images.permute(0, 2, 3, 1).reshape(len(images), math.prod(images.shape[1:])).numpy()
    odd = np.random.default_rng(0).integers(2**63, size=-(-flat.shape[1] // 8), dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(flat), np.uint64)
    for start in range(0, len(flat), 512):  # few enough to stay in the cache
        rows = flat[start : start + 512]
        words = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))) if rows.shape[1] % 8 else rows
        keys[start : start + 512] = np.ascontiguousarray(words).view(np.uint64) @ odd
    return keys


def _unlike(images: Tensor, keys: np.ndarray, others: Sequence[tuple[Tensor, np.ndarray]]) -> np.ndarray:
    """Which images are byte-equal to none of the others: (N,) bool."""
    alike = np.isin(keys, np.concatenate([own for _, own in others]))
    suspects = np.flatnonzero(alike)
    known: set[bytes] = set()
    for other, own in others:
        known |= set(image_hashes(other[torch.from_numpy(np.isin(own, keys[suspects]))]))
    alike[suspects] = [each in known for each in image_hashes(images[torch.from_numpy(suspects)])]
    return ~alike


def _kept(part: Part, keep: np.ndarray) -> Part:
    return part if keep.all() else part[torch.from_numpy(keep)]
