"""Which class folders and image files a folder holds, by their names alone. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, but for hidden ones."""
    with os.scandir(folder) as items:
        return tuple(sorted(item.name for item in items if item.is_dir() and not item.name.startswith(".")))


def image_names(folder: Path) -> list[str]:
    """The names of the image files in a folder, but for hidden ones."""
    with os.scandir(folder) as items:
        return sorted(
            item.name
            for item in items
            if Path(item.name).suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".")
        )


def training_folder(root: Path) -> Path:
    """Where class folders for training are: in `train` if it holds folders; else in the root."""
    train = root / "train"
    return train if train.is_dir() and class_folders(train) else root


def count_class_folders(folder: Path) -> int:
    """How many class folders with images a folder has, or its folder ``train``."""
    folder = training_folder(folder)
    return sum(bool(image_names(folder / name)) for name in class_folders(folder))
