"""`glyphs`: characters rendered from the fonts that matplotlib ships. Many classes, natural similarity, offline."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, normalize

from lightning_mvp.tasks.partition import Part

# Symbol fonts (STIXSiz*, cm*), LastResort and the Display cuts are not on the list: they lack most characters.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}

# One of each set of look-alikes: O of O/0/o/Ο/О/θ, 1 and i of 1/l/I/|/ı, c of C/c/С, E of E/F/Ε/Е ...
# `look_alikes` finds none among them.
CHARACTERS = (
    "ABDEGHKLMNOQRTYabcdefgijkmnpqrstuvwxz123456789"
    '!"#$%&()*+,-./:;<=>?@[\\]^{}~¢£¤¥§©«¬±¶»¿†‰“€∂'
    "ÆØßæðþŊΓΞΣΦΨΩαελξωДЖЛЦЧШЪЫЭЮЯ"
)

_NO_CHARACTER = "\uffff"  # never assigned: every font shows its placeholder for it
_SIDE, _FIT, _POINTS = 64, 46, 96  # of a stored glyph: canvas, longer side of the ink on it, size it is drawn at
_CHUNK = 256  # images warped at once: bounds memory, does not change the result


def class_name(character: str) -> str:
    """A printable ASCII name: the character's Unicode name, shortened.

    Example:
        >>> [class_name(character) for character in "aAΩ7!"]
        ['latin-a', 'latin-capital-a', 'greek-capital-omega', 'digit-7', 'exclamation-mark']
    """
    if character.isdigit():
        return f"digit-{character}"
    words = unicodedata.name(character).lower().replace("-", " ").split()
    return "-".join(word for word in words if word not in ("small", "letter", "sign"))


def render(character: str, face: str) -> np.ndarray:
    """Draw a character: its ink is scaled to one longer side and centred, so that case and size tell nothing.

    Args:
        character: a single character.
        face: a font of `FAMILIES`.

    Returns:
        uint8 (64, 64): 255 is ink.

    Raises:
        ValueError: if the face is not on the list, or shows the character as nothing or as its placeholder box.
        FileNotFoundError: if matplotlib does not ship the font.
    """
    if not any(face in faces for faces in FAMILIES.values()):
        raise ValueError(f"Expected argument `face` to be one of {sum(FAMILIES.values(), ())}, but got {face!r}.")
    font = _font(face)
    mask = font.getmask(character)
    box = mask.getbbox()
    placeholder = font.getmask(_NO_CHARACTER)
    if box is None or (mask.size == placeholder.size and bytes(mask) == bytes(placeholder)):
        raise ValueError(
            f"Expected argument `character` to be drawn by {face}, but it has no glyph for {character!r} "
            f"(U+{ord(character):04X}). Leave it out of `characters`."
        )
    ink = Image.frombytes("L", mask.size, bytes(mask)).crop(box)
    scale = _FIT / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (_SIDE, _SIDE))
    canvas.paste(ink, ((_SIDE - ink.width) // 2, (_SIDE - ink.height) // 2))
    return np.asarray(canvas)


def look_alikes(glyphs: Tensor, threshold: float = 0.88) -> list[tuple[int, int]]:
    """Pairs of characters that a reader would confuse.

    Similarity is the cosine of two glyphs reduced to 16 × 16, mean over the faces.

    Shapes: `glyphs` is float (faces, characters, 64, 64); the result holds pairs i < j of characters.

    Args:
        glyphs: as `render` draws them, scaled to [0, 1].
        threshold: similarity from which two characters are look-alikes.
    """
    flat = normalize(avg_pool2d(glyphs, _SIDE // 16).flatten(2), dim=-1)
    similarity = (flat @ flat.transpose(1, 2)).mean(0)
    return [(i, j) for i, j in (similarity.triu(1) >= threshold).nonzero().tolist()]


def faces_of_parts(seed: int) -> dict[str, tuple[str, ...]]:
    """Which faces each part is drawn in: one of every family for test, two for val, the other ten for train.

    Example:
        >>> faces = faces_of_parts(seed=0)
        >>> {part: len(names) for part, names in faces.items()}
        {'train': 10, 'val': 2, 'test': 4}
    """
    rng = np.random.default_rng(seed)
    shuffled = {family: [faces[i] for i in rng.permutation(len(faces))] for family, faces in FAMILIES.items()}
    val_families = set(rng.choice(list(FAMILIES), size=2, replace=False).tolist())
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for family, faces in shuffled.items():
        parts["test"].append(faces.pop())
        if family in val_families:
            parts["val"].append(faces.pop())
        parts["train"] += faces
    return {part: tuple(names) for part, names in parts.items()}


def load_glyphs(
    *,
    image_size: int = 32,
    seed: int = 0,
    characters: str = CHARACTERS,
    per_class_train: int = 60,
    per_class_val: int = 15,
    per_class_test: int = 25,
) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Render the data set: every image is a glyph in a face of its part, warped, coloured and made noisy.

    Args:
        image_size: height and width.
        seed: the faces of the parts and all images follow from it.
        characters: one class each.
        per_class_train: images of each class in the train part.
        per_class_val: the same for val.
        per_class_test: the same for test.

    Returns:
        Class names, and the parts "train", "val" and "test": uint8 (N, 3, S, S), int64 (N,), class by class.

    Raises:
        ValueError: for repeated, missing or look-alike characters, or a count below 1.
    """
    counts = {"train": per_class_train, "val": per_class_val, "test": per_class_test}
    for part, count in counts.items():
        if count < 1:
            raise ValueError(f"Expected argument `per_class_{part}` to be an int of at least 1, but got {count}.")
    if image_size < 8:
        raise ValueError(f"Expected argument `image_size` to be an int of at least 8, but got {image_size}.")
    if len(characters) < 2 or len(set(characters)) != len(characters):
        raise ValueError("Expected argument `characters` to be two or more distinct characters.")
    faces = sum(FAMILIES.values(), ())
    glyphs = torch.from_numpy(np.array([[render(c, face) for c in characters] for face in faces])).float() / 255
    if pairs := look_alikes(glyphs):
        named = ", ".join(f"{characters[i]} and {characters[j]}" for i, j in pairs)
        raise ValueError(
            f"Expected argument `characters` to be told apart, but got look-alikes: {named}. Drop one of each."
        )
    # Close to the size they are sampled at, so that thin strokes don't break up.
    glyphs = interpolate(glyphs, [image_size * 5 // 4] * 2, mode="bilinear", antialias=True)
    parts = {}
    for stream, (part, part_faces) in enumerate(faces_of_parts(seed).items()):
        generator = torch.Generator().manual_seed(3 * seed + stream)
        chosen = glyphs[[faces.index(face) for face in part_faces]]
        parts[part] = _draw_part(chosen, counts[part], image_size, generator)
    return tuple(class_name(character) for character in characters), parts


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    import matplotlib  # heavy, and only its folder of fonts is needed

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise FileNotFoundError(f"Expected matplotlib to ship the font {path.name}, but {path} does not exist.")
    return ImageFont.truetype(str(path), _POINTS, layout_engine=ImageFont.Layout.BASIC)


def _draw_part(glyphs: Tensor, per_class: int, size: int, generator: torch.Generator) -> Part:
    """Glyphs (faces, classes, T, T) → `per_class` images of each class."""
    labels = torch.arange(glyphs.shape[1]).repeat_interleave(per_class)
    faces = torch.randint(len(glyphs), labels.shape, generator=generator)
    images = [
        _colour(_warp(glyphs[f, c].unsqueeze(1), size, generator), generator)
        for f, c in zip(faces.split(_CHUNK), labels.split(_CHUNK), strict=True)
    ]
    return Part(torch.cat(images), labels)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _warp(ink: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale, shift and bend each glyph. (n, 1, T, T) → (n, 1, size, size)."""
    n = len(ink)
    angle, shear = _uniform(n, -0.2, 0.2, generator), _uniform(n, -0.15, 0.15, generator)
    scale, aspect = _uniform(n, 0.85, 1.15, generator), _uniform(n, 0.85, 1.2, generator).sqrt()
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.15
    # Rows of the inverse map, from output to glyph: unrotate, unscale, unshear.
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([cos, sin], 1) / (scale * aspect).unsqueeze(1)
    y = torch.stack([-sin, cos], 1) / (scale / aspect).unsqueeze(1)
    matrix = torch.stack([x + shear.unsqueeze(1) * y, y], 1)
    theta = torch.cat([matrix, matrix @ -shift.unsqueeze(2)], 2)
    grid = affine_grid(theta, [n, 1, size, size], align_corners=False)
    bend = 0.03 * torch.randn(n, 2, 4, 4, generator=generator)
    grid = grid + interpolate(bend, [size, size], mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    return grid_sample(ink, grid, align_corners=False)


def _colour(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Give ink (n, 1, S, S) a colour, an uneven background and noise: uint8 (n, 3, S, S)."""
    n, size = len(ink), ink.shape[-1]
    paper = 0.4 * torch.rand(n, 3, 1, 1, generator=generator)
    contrast = _uniform(n, 0.4, 0.7, generator).view(n, 1, 1, 1)
    tint = 0.3 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    pen = paper + contrast + tint  # light on dark, always: both ways would double what there is to learn
    clouds = 0.06 * torch.randn(n, 3, 3, 3, generator=generator)
    paper = paper + interpolate(clouds, [size, size], mode="bilinear", align_corners=True)
    noise = _uniform(n, 0.02, 0.06, generator).view(n, 1, 1, 1) * torch.randn(n, 3, size, size, generator=generator)
    image = paper * (1 - ink) + pen * ink + noise
    return (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
