"""Images that are opened when they are asked for: how many there are is known, and no pixel is read before."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ORIENTATION = 0x0112  # EXIF's tag of how a camera was held
# What Pillow raises at a file that is damaged, too large or none of an image; some of its readers raise others.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, IndexError, TypeError)


class BrokenImageError(ValueError):
    """An image can't be read; the message names it."""


class Images(ABC):
    """Many images, each opened when it is asked for. Cheap to make, and cheap to send to a loading process."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def open(self, index: int) -> Tensor:
        """One image, uint8 ``(C, H, W)`` in its own size.

        Raises:
            BrokenImageError: it can't be read.
        """

    def name(self, index: int) -> str:
        """What messages call an image."""
        return f"image {index}"

    def content_size(self, index: int) -> int | None:
        """The size of an image's encoded content in bytes; None where it has none."""
        return None

    def content(self, index: int) -> bytes:
        """The encoded content of an image; nothing where it has none."""
        return b""

    def check(self, index: int) -> None:  # noqa: B027 (some can't tell)
        """Refuse an image that can't be read, as far as that is seen without decoding it.

        Raises:
            BrokenImageError: it can't be read.
        """

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image."""
        height, width = self.open(index).shape[1:]
        return width, height

    def select(self, index: Tensor) -> Images:
        """Some of the images, in this order."""
        return Selected(self, index.numpy())


class Selected(Images):
    """Some images of others, in an order of their own."""

    def __init__(self, images: Images, index: np.ndarray) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def open(self, index: int) -> Tensor:
        return self.images.open(int(self.index[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.index[index]))

    def content_size(self, index: int) -> int | None:
        return self.images.content_size(int(self.index[index]))

    def content(self, index: int) -> bytes:
        return self.images.content(int(self.index[index]))

    def check(self, index: int) -> None:
        self.images.check(int(self.index[index]))

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(int(self.index[index]))

    def select(self, index: Tensor) -> Images:
        return Selected(self.images, self.index[index.numpy()])


class EncodedImages(Images):
    """Images that lie encoded somewhere, such as JPEG or PNG files.

    Args:
        image_size: the largest centred square of each is scaled to this size; None leaves them as they are.
    """

    def __init__(self, image_size: int | None) -> None:
        self.image_size = image_size

    @abstractmethod
    def stream(self, index: int) -> BinaryIO:
        """The encoded image, open for reading."""

    def open(self, index: int) -> Tensor:
        try:
            with self.stream(index) as file, Image.open(file) as picture:
                return pixels_of(picture, self.image_size)
        except UNREADABLE as error:
            raise unreadable(self.name(index), error) from error

    def check(self, index: int) -> None:
        try:
            with self.stream(index) as file:
                check_file(file)
        except UNREADABLE as error:
            raise unreadable(self.name(index), error) from error

    def content(self, index: int) -> bytes:
        with self.stream(index) as file:
            return file.read()

    def size(self, index: int) -> tuple[int, int]:
        if self.image_size:
            return self.image_size, self.image_size
        with self.stream(index) as file, Image.open(file) as picture:
            return picture.size


class ImageFiles(EncodedImages):
    """Image files below a folder.

    Args:
        root: the folder.
        names: of the files, relative to it.
        image_size: the largest centred square of each is scaled to this size; None leaves them as they are.
    """

    def __init__(self, root: Path, names: Iterable[str], image_size: int | None = None) -> None:
        super().__init__(image_size)
        self.root = root
        # One array instead of many strings: loading processes share its memory as long as nobody counts references.
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        return str(self.path(index))

    def stream(self, index: int) -> BinaryIO:
        return self.path(index).open("rb")

    def content_size(self, index: int) -> int | None:
        return self.path(index).stat().st_size


# How a whole file of a format begins and ends. One that was cut off ends otherwise.
WHOLE = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}


def check_file(file: BinaryIO) -> None:
    """Raise what Pillow raises at a file that it can't read; a JPEG or PNG with a sound beginning and end passes.

    Others are decoded, such as a JPEG with something after its end, which is sound.
    """
    start = file.read(4)
    for begins, ends in WHOLE.items():
        if start.startswith(begins):
            file.seek(-len(ends), os.SEEK_END)
            if file.read() == ends:
                return
    file.seek(0)
    with Image.open(file) as picture:
        picture.load()


def unreadable(name: str, error: Exception) -> BrokenImageError:
    """The error that names an image and says why it can't be read, and what to do."""
    why = "is no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else f"can't be read ({error})"
    return BrokenImageError(
        f"{name} {why}. Mend or remove it, or leave such images out with data.broken=skip (Python: broken='skip')."
    )


def pixels_of(picture: Image.Image, image_size: int | None = None) -> Tensor:
    """A picture of any kind as uint8 ``(3, H, W)``, as a person sees it.

    It is turned as its EXIF data say; 16 bits a channel are scaled to 8; grey, palettes and CMYK become RGB; what is
    transparent shows white.

    Args:
        picture: as Pillow opens it.
        image_size: the largest centred square is scaled to this size; None leaves the picture as it is.

    Raises:
        ValueError: it holds floating-point numbers, whose range nobody knows.

    Example:
        >>> pixels_of(Image.new("I;16", (4, 2), 65535)).unique().tolist()
        [255]
    """
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)  # which copies those that need no turn, too
    if picture.mode == "F":
        raise ValueError("it holds floating-point numbers, whose range is not known")
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it
    if image_size is not None and rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
