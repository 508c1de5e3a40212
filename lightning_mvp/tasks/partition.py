"""One train/val/test partition per data set and seed, and nothing shared between its parts. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Images uint8 (N, C, H, W) and labels int64 (N,). Shared within the process: don't write to them.

    Raises:
        ValueError: for other dtypes or shapes.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                "Expected argument `images` to be a uint8 tensor of shape (N, C, H, W), "
                f"but got {self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Expected argument `labels` to be an int64 tensor of shape ({len(self.images)},), "
                f"but got {self.labels.dtype} of shape {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Part:
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        # index_select is twice as fast as images[index].
        return Part(self.images.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: its classes, its three parts, and what images are normalised with.

    Args:
        mean: of each channel, in [0, 1]; None takes those of the train part.
        std: likewise.

    Raises:
        ValueError: if parts differ in image shape, images aren't square, a label has no class, train is empty, or
            `mean` or `std` is not of one number in [0, 1] (0 excluded for `std`) for each channel.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    mean: tuple[float, ...] = None  # type: ignore[assignment]  # never None once made
    std: tuple[float, ...] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not len(self.train):
            raise ValueError(f"Expected data set {self.name!r} to have training images, but got none.")
        shape = self.train.images.shape[1:]
        if shape[1] != shape[2]:
            raise ValueError(
                f"Expected data set {self.name!r} to have square images, but got {shape[1]} × {shape[2]}. "
                "Set `image_size`."
            )
        for part_name in ("train", "val", "test"):
            part = getattr(self, part_name)
            if part.images.shape[1:] != shape:
                raise ValueError(
                    f"Expected {part_name} images of data set {self.name!r} to have shape {tuple(shape)}, "
                    f"but got {tuple(part.images.shape[1:])}. Set `image_size`."
                )
            if len(part) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(self.classes):
                raise ValueError(
                    f"Expected {part_name} labels of data set {self.name!r} to be in [0, {len(self.classes)}), "
                    f"but got {int(part.labels.min())} to {int(part.labels.max())}."
                )
        for name, own in zip(("mean", "std"), _moments(self.train.images), strict=True):
            given = getattr(self, name)
            if given is not None:
                own = tuple(float(value) for value in given)
                if len(own) != shape[0] or not all(0 <= value <= 1 for value in own) or (name == "std" and 0 in own):
                    raise ValueError(
                        f"Expected argument `{name}` to be {shape[0]} numbers in [0, 1], one for each channel of data "
                        f"set {self.name!r}{', above 0' if name == 'std' else ''}, but got {list(own)}."
                    )
            object.__setattr__(self, name, own)

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel in [0, 1] from the histogram of the 256 values: exact, and without a float copy."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]).double()
    shares /= shares.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


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
    if the data set holds it twice.

    Example:
        >>> def pixel(*values):
        ...     images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
        ...     return Part(images, torch.zeros(len(values), dtype=torch.int64))
        >>> train, val = drop_duplicates(pixel(1, 2, 3), pixel(2, 4), pixel(3, 4))
        >>> train.images.flatten().tolist(), val.images.flatten().tolist()
        ([1], [2])
    """
    keys = [image_keys(part.images) for part in (train, val, test)]
    new_val = _unlike(val.images, keys[1], ((test.images, keys[2]),))
    new_train = _unlike(train.images, keys[0], ((val.images, keys[1]), (test.images, keys[2])))
    return _kept(train, new_train), _kept(val, new_val)


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
