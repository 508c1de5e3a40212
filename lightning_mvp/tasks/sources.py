"""Readers of the other data sets: `digits`, `torchvision`, `imagefolder`, `arrays`. Each gives what its files hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_mvp.tasks.partition import Part

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """A data set as it is shipped: val and test are None where it ships none."""

    classes: tuple[str, ...]
    train: Part
    val: Part | None = None
    test: Part | None = None


def load_digits(*, image_size: int | None = None) -> Source:
    """1,797 real scans of handwritten digits (scikit-learn's copy of the UCI set), 8 × 8 grey, given as RGB."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise ImportError("Data set 'digits' needs scikit-learn: pip install 'lightning-mvp[digits]'.") from error
    scans = sklearn_digits()
    grey = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    part = part_from_arrays(np.repeat(grey[..., None], 3, axis=-1), scans.target, image_size)
    return Source(tuple(f"digit-{digit}" for digit in range(10)), part)


def load_arrays(
    *, root: Path | None, image_size: int | None, train: str | Path, test: str | Path | None = None
) -> Source:
    """npz files with `images` uint8 (N, H, W, C), `labels` int (N,) and, optionally, `classes` (C,)."""
    classes, train_part = _read_npz(Path(root or "", train), image_size)
    if test is None:
        return Source(classes, train_part)
    test_classes, test_part = _read_npz(Path(root or "", test), image_size)
    # Without names the classes are counted from the labels, and a small test file may miss the last ones.
    if classes[: len(test_classes)] != test_classes:
        raise ValueError(f"Expected {test} to have the classes of {train}, but they differ.")
    return Source(classes, train_part, test=test_part)


def load_imagefolder(*, root: Path | None, image_size: int | None = None) -> Source:
    """`root/train/<class>/*` with optional `root/val` and `root/test`, or `root/<class>/*`."""
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"Expected argument `root` to be a folder of class folders, but got {root}.")
    train_folder = root / "train" if (root / "train").is_dir() else root
    classes = tuple(sorted(folder.name for folder in train_folder.iterdir() if folder.is_dir()))
    if not classes:
        raise FileNotFoundError(f"Expected {train_folder} to hold one folder of images per class, but got none.")

    def read(folder: Path) -> Part:
        unknown = sorted({item.name for item in folder.iterdir() if item.is_dir()} - set(classes))
        if unknown:
            raise ValueError(f"Expected {folder} to hold the classes of {train_folder}, but got {unknown}.")
        files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).glob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise FileNotFoundError(f"Expected images in {folder}/<class>/, but got none.")
        return part_from_pictures(((Image.open(path), label) for path, label in files), image_size)

    shipped = {name: read(root / name) for name in ("val", "test") if train_folder != root and (root / name).is_dir()}
    return Source(classes, read(train_folder), shipped.get("val"), shipped.get("test"))


def load_torchvision(
    *, root: Path | None, image_size: int | None, download: bool, dataset: str, **arguments: Any
) -> Source:
    """A classification data set of torchvision by its class name, as "CIFAR100"; `arguments` go to its constructor."""
    import torchvision.datasets as library

    build = getattr(library, dataset, None)
    if build is None or dataset not in library.__all__:
        close = get_close_matches(dataset, library.__all__, n=3, cutoff=0.5)
        raise ValueError(
            f"Expected option `dataset` to be a torchvision data set, but got {dataset!r}. Close: {close}."
        )
    if root is None:
        raise ValueError("Expected argument `root` to be the folder for torchvision's files, but got None.")
    accepted = inspect.signature(build.__init__).parameters
    if download:
        arguments["download"] = True

    def open_part(**which: str | bool) -> Any:
        try:
            return build(str(root), **which, **arguments)
        except RuntimeError as error:  # how torchvision says that files are missing
            raise FileNotFoundError(
                f"Expected the files of torchvision's {dataset} in {root}, but got: {error} "
                "Put them there, or set `download` to true."
            ) from error

    val = test = None
    if "train" in accepted or "split" in arguments:  # EMNIST's own `split` names a subset of letters
        train, test = open_part(train=True), open_part(train=False)
    elif "split" in accepted:
        train, test = open_part(split="train"), open_part(split="test")
        with suppress(ValueError):  # how torchvision says that there is no such split
            val = open_part(split="val")
    else:
        train = open_part()
    train_part = _read_pictures(train, image_size)
    names = getattr(train, "classes", None) or [f"class-{n:03d}" for n in range(1 + int(train_part.labels.max()))]
    return Source(
        # ImageNet lists synonyms: the first one names the class.
        tuple(name if isinstance(name, str) else name[0] for name in names),
        train_part,
        None if val is None else _read_pictures(val, image_size),
        None if test is None else _read_pictures(test, image_size),
    )


def _read_pictures(data: Any, image_size: int | None) -> Part:
    return part_from_pictures((data[index] for index in range(len(data))), image_size)


def part_from_pictures(pictures: Iterable[tuple[Image.Image, int]], image_size: int | None) -> Part:
    """Pictures of any size as RGB; with `image_size`, the largest centred square of each is scaled to it."""
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for picture, label in pictures:
        rgb = picture.convert("RGB")
        if image_size is not None and rgb.size != (image_size, image_size):
            rgb = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BILINEAR)
        if arrays and arrays[0].shape != (rgb.height, rgb.width, 3):
            raise ValueError(
                f"Expected pictures of one size, but got {arrays[0].shape[1]} × {arrays[0].shape[0]} and "
                f"{rgb.width} × {rgb.height}. Set `image_size`."
            )
        arrays.append(np.asarray(rgb))
        labels.append(int(label))
    if not arrays:
        raise ValueError("Expected at least one picture, but got none.")
    return part_from_arrays(np.stack(arrays), np.array(labels))


def part_from_arrays(images: np.ndarray, labels: np.ndarray, image_size: int | None = None) -> Part:
    """Images uint8 (N, H, W, C) or (N, H, W) and integer labels (N,); with `image_size`, centred squares scaled to it.

    Raises:
        ValueError: for other shapes or types.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ValueError(
            f"Expected `images` to be uint8 of shape (N, H, W, C), but got {images.dtype} of shape {images.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Expected `labels` to be integers of shape ({len(images)},), "
            f"but got {labels.dtype} of shape {labels.shape}."
        )
    tensor = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()
    if image_size is not None:
        tensor = _fit(tensor, image_size)
    return Part(tensor, torch.from_numpy(labels.astype(np.int64)))


def _fit(images: Tensor, size: int) -> Tensor:
    side = min(images.shape[-2:])
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    chunks = [interpolate(chunk.float(), [size, size], mode="bilinear", antialias=True) for chunk in square.split(1024)]
    return torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in chunks])


def _read_npz(path: Path, image_size: int | None) -> tuple[tuple[str, ...], Part]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected an npz file with `images` and `labels`, but {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("images", "labels", "classes") if key in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"Expected {path} to be an npz file without pickled objects, but got: {error}") from error
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise ValueError(f"Expected {path} to hold `images` and `labels`, but {sorted(missing)} is missing.")
    try:
        part = part_from_arrays(arrays["images"], arrays["labels"], image_size)
    except ValueError as error:
        raise ValueError(f"In {path}: {error}") from error
    if "classes" in arrays:
        return tuple(str(name) for name in arrays["classes"]), part
    return tuple(f"class-{label:03d}" for label in range(int(part.labels.max()) + 1)), part
