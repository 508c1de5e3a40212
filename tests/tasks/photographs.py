"""Small image files for tests, each another picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photographs(
    root: Path, classes: dict[str, int], size: tuple[int, int] = (40, 30), suffix: str = ".png"
) -> Path:
    """Folders of so many images each, of `size` (width, height)."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        for i in range(count):
            pixels = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}{suffix}")
    return root
