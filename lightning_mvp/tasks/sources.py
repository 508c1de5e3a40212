"""Readers of the other data sets. Each gives what its files hold; image files are listed, not opened."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_mvp.tasks import hub
from lightning_mvp.tasks.images import UNREADABLE, ImageFiles, Images, pixels_of, unreadable
from lightning_mvp.tasks.listing import class_folders, image_names, training_folder
from lightning_mvp.tasks.partition import Part
from lightning_mvp.tasks.torchvision_internals import names_in_a_file_beside


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
    """`root/train/<class>/*` with optional `root/val` and `root/test`, or `root/<class>/*`. No image is opened.

    Where there is `root/val` and no `root/test`, as in ImageNet's layout, `val` is the test part.
    """
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"Expected argument `root` to be a folder of class folders, but got {root}.")
    train_folder = training_folder(root)
    classes = class_folders(train_folder)
    if not classes:
        raise FileNotFoundError(f"Expected {train_folder} to hold one folder of images per class, but got none.")
    shipped = {
        name: _list_images(root / name, classes, train_folder, image_size)
        for name in ("val", "test")
        if train_folder != root and (root / name).is_dir()
    }
    if "test" not in shipped and "val" in shipped:
        shipped = {"test": shipped["val"]}
    train = _list_images(train_folder, classes, train_folder, image_size)
    return Source(classes, train, shipped.get("val"), shipped.get("test"))


def _list_images(folder: Path, classes: Sequence[str], train_folder: Path, image_size: int | None) -> Part:
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise ValueError(f"Expected {folder} to hold the classes of {train_folder}, but got {unknown}.")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            files = image_names(folder / name)
            names += [f"{name}/{file}" for file in files]
            labels += [label] * len(files)
    if not names:
        raise FileNotFoundError(f"Expected images in {folder}/<class>/, but got none.")
    return Part(ImageFiles(folder, names, image_size), torch.tensor(labels, dtype=torch.int64))


def load_torchvision(
    *, root: Path | None, image_size: int | None, download: bool, dataset: str, **arguments: Any
) -> Source:
    """A classification data set of torchvision by its class name, as "CIFAR100"; `arguments` go to its constructor.

    Images that torchvision itself keeps in memory stay there; others are opened when they are asked for.
    """
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
        train = open_part(split="train")
        with suppress(ValueError):  # how torchvision says that there is no such split
            val = open_part(split="val")
        try:
            test = open_part(split="test")
        except ValueError:  # ImageNet's validation images are what others test on
            val, test = None, val
    else:
        train = open_part()
    train_part = _part_of(train, image_size)
    names = getattr(train, "classes", None) or [f"class-{n:03d}" for n in range(1 + int(train_part.labels.max()))]
    return Source(
        # ImageNet lists synonyms: the first one names the class.
        tuple(name if isinstance(name, str) else name[0] for name in names),
        train_part,
        None if val is None else _part_of(val, image_size),
        None if test is None else _part_of(test, image_size),
    )


def torchvision_classes(*, root: Path | None, dataset: str) -> tuple[str, ...] | None:
    """The class names of a data set of torchvision's, if they can be had without its images."""
    import torchvision.datasets as library

    build = getattr(library, dataset, None)
    if root is None or build is None:
        return None
    with suppress(RuntimeError, OSError):  # whoever opens the images says what is missing
        names = names_in_a_file_beside(build, root)
        return names if names is not None else _texts(getattr(build, "classes", None))
    return None


def _texts(names: Any) -> tuple[str, ...] | None:
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _part_of(data: Any, image_size: int | None) -> Part:
    """One part of a torchvision data set, in memory where torchvision has its images there, or labels are unknown."""
    labels = _labels_of(data)
    if hasattr(data, "data") or labels is None:
        return part_from_pictures((data[index] for index in range(len(data))), image_size)
    return Part(MapImages(data, image_size), labels)


# Where torchvision's data sets keep the labels of all images, or pairs of a file and its label.
_LABELS, _PAIRS = ("targets", "labels", "_labels", "y"), ("samples", "imgs", "_samples")


def _labels_of(data: Any) -> Tensor | None:
    """The labels of all images without opening one; None where they can't be found."""
    given = [getattr(data, name, None) for name in _LABELS]
    for name in _PAIRS:
        with suppress(TypeError, ValueError):
            given.append([label for _, label in getattr(data, name, None) or ()])
    for labels in given:
        with suppress(TypeError, ValueError, RuntimeError):
            found = torch.as_tensor(labels)
            if found.shape == (len(data),) and not found.is_floating_point() and found.dtype != torch.bool:
                return found.to(torch.int64)
    return None


class MapImages(Images):
    """The images of a map-style data set whose items are pairs of a Pillow image and a label.

    Args:
        data: as torchvision has them.
        image_size: the largest centred square of each is scaled to this size; None leaves them as they are.
    """

    def __init__(self, data: Any, image_size: int | None) -> None:
        self.data, self.image_size = data, image_size

    def __len__(self) -> int:
        return len(self.data)

    def open(self, index: int) -> Tensor:
        try:
            return pixels_of(self.data[index][0], self.image_size)
        except UNREADABLE as error:
            raise unreadable(f"image {index} of torchvision's {type(self.data).__name__}", error) from error


def load_huggingface(
    *,
    root: Path | None,
    image_size: int | None,
    download: bool,
    path: str | None = None,
    image: str | None = None,
    label: str | None = None,
    **arguments: Any,
) -> Source:
    """A data set of Hugging Face's `datasets`: from a folder that it knows, or by name from its cache or the hub.

    Args:
        root: a folder written by `save_to_disk`, or one of parquet files, or of images as `imagefolder` reads them.
        image_size: the largest centred square of each is scaled to this size; None leaves them as they are.
        download: whether what is not on this machine may be fetched.
        path: name of the data set, as `load_dataset` takes it; None reads `root`.
        image: name of the column of images; None: the first that holds some.
        label: name of the column of class labels; None: the first that holds some.
        arguments: for `load_dataset`, such as `name` or `revision`.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: there is nothing there.
        ValueError: it has no such columns.
    """
    parts = hub.open_parts(root, path, download, arguments)
    image, label, classes = hub.columns_of(parts["train"], image, label)

    def part(name: str) -> Part | None:
        if name not in parts:
            return None
        return Part(hub.HubImages(parts[name], image, image_size), torch.tensor(parts[name][label], dtype=torch.int64))

    train = part("train")
    assert train is not None
    val, test = part("validation"), part("test")
    return Source(classes, train, val if test is not None else None, test if test is not None else val)


def part_from_pictures(pictures: Iterable[tuple[Image.Image, int]], image_size: int | None) -> Part:
    """Pictures of any size as RGB; with `image_size`, the largest centred square of each is scaled to it."""
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for picture, label in pictures:
        image = pixels_of(picture, image_size).permute(1, 2, 0).numpy()
        if arrays and arrays[0].shape != image.shape:
            raise ValueError(
                f"Expected pictures of one size, but got {arrays[0].shape[1]} × {arrays[0].shape[0]} and "
                f"{image.shape[1]} × {image.shape[0]}. Set `image_size`."
            )
        arrays.append(image)
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


def arrays_classes(path: Path) -> tuple[str, ...]:
    """The names of the classes of an npz file; its images are not read."""
    return _classes_of(_npz(path, ("labels", "classes")), path)


def _classes_of(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[str, ...]:
    if "labels" not in arrays:
        raise ValueError(f"Expected {path} to hold `images` and `labels`, but ['labels'] is missing.")
    if "classes" in arrays:
        return tuple(str(name) for name in arrays["classes"])
    return tuple(f"class-{label:03d}" for label in range(int(arrays["labels"].max()) + 1))


def _npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected an npz file with `images` and `labels`, but {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in names if key in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"Expected {path} to be an npz file without pickled objects, but got: {error}") from error


def _read_npz(path: Path, image_size: int | None) -> tuple[tuple[str, ...], Part]:
    arrays = _npz(path, ("images", "labels", "classes"))
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise ValueError(f"Expected {path} to hold `images` and `labels`, but {sorted(missing)} is missing.")
    try:
        part = part_from_arrays(arrays["images"], arrays["labels"], image_size)
    except ValueError as error:
        raise ValueError(f"In {path}: {error}") from error
    return _classes_of(arrays, path), part
