"""Photographs that nobody took: JPEG files of about 500 × 375 pixels in class folders, no two of them equal.

Each class has a few pictures of its own, clouds of colour with some grain; each file is another piece of one of them.
That decodes and compresses as a photograph does, and takes a few milliseconds to make.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
MARGIN = 64  # a piece lies anywhere in a picture that is so much wider and higher
PICTURES = 2  # of each class
QUALITY = 86
GRAIN = 8.0  # standard deviation, of 255


def make_folders(root: Path, classes: int, images: int, seed: int = 0, threads: int = 2) -> list[str]:
    """Write ``root/class-000/000.jpg`` and so on; the names of the classes. The same arguments make the same files.

    Args:
        root: a folder that is not there yet, or is empty.
        classes: number of folders.
        images: files in each, at most ``PICTURES * MARGIN ** 2``.
        seed: of pictures and pieces.
        threads: that make classes side by side; they change nothing.
    """
    names = [f"class-{number:03d}" for number in range(classes)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: make_class(root / names[number], images, [seed, number]), range(classes)))
    return names


def make_class(folder: Path, images: int, seed: list[int]) -> None:
    """The files of one class."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    pictures = [picture(rng) for _ in range(PICTURES)]
    # Without replacement: no two pieces of a picture begin at the same place.
    places = np.stack([rng.permutation(MARGIN**2)[: -(-images // PICTURES)] for _ in pictures])
    for number in range(images):
        which = number % PICTURES
        top, left = divmod(int(places[which, number // PICTURES]), MARGIN)
        piece = pictures[which].crop((left, top, left + WIDTH, top + HEIGHT))
        piece.save(folder / f"{number:03d}.jpg", quality=QUALITY)


def picture(rng: np.random.Generator) -> Image.Image:
    """Clouds of colour of several sizes, with grain."""
    size = (WIDTH + MARGIN, HEIGHT + MARGIN)
    total = np.zeros((size[1], size[0], 3), np.float32)
    for cells, share in ((4, 0.5), (12, 0.3), (40, 0.2)):
        coarse = rng.integers(256, size=(cells * 3 // 4, cells, 3), dtype=np.uint8)
        total += share * np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
    total += rng.normal(0, GRAIN, total.shape).astype(np.float32)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))
