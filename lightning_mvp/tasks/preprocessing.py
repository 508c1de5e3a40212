"""From stored uint8 images to what one model eats."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from lightning_mvp.tasks.facts import TaskFacts


def preprocess(images: Tensor, facts: TaskFacts) -> Tensor:
    """Evaluation transform of one model: `(crop(resize(images)) / 255 - mean) / std`.

    The shorter side is resized to `floor(input_size / crop)` (antialiased; the convention of timm's evaluation
    transform), then the centre of side `input_size` is cut out. Images that already have that size are not touched.

    Shapes: `images` is uint8 (N, C, H, W); the result is float32 (N, C, S, S) with S = `facts.input_size`.

    Args:
        images: raw images.
        facts: the facts of the model that will see them: every model of a zoo is fed by its own.

    Raises:
        ValueError: if the images are not uint8, not 4-dimensional, or have another number of channels than the facts.

    Example:
        >>> facts = TaskFacts("pets", ("cat", "dog"), input_size=8, mean=(0.5,), std=(0.25,))
        >>> white = torch.full((2, 1, 16, 24), 255, dtype=torch.uint8)
        >>> batch = preprocess(white, facts)
        >>> tuple(batch.shape), batch.unique().tolist()
        ((2, 1, 8, 8), [2.0])
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            "Expected argument `images` to be a uint8 tensor of shape (N, C, H, W), "
            f"but got {images.dtype} of shape {tuple(images.shape)}."
        )
    if images.shape[1] != facts.channels:
        raise ValueError(
            f"Expected argument `images` to have {facts.channels} channels, as the facts of task {facts.name!r} say, "
            f"but got {images.shape[1]}."
        )
    return _normalise_(_centre_crop(_resize(images.float(), facts), facts.input_size), facts)


def normalised(images: Tensor, facts: TaskFacts) -> Tensor:
    """Images that are in the model's size already: `(images / 255 - mean) / std`, uint8 (N, C, S, S) to float32."""
    return _normalise_(images.float(), facts)


def _normalise_(pixels: Tensor, facts: TaskFacts) -> Tensor:
    mean = pixels.new_tensor(facts.mean).view(1, -1, 1, 1)
    std = pixels.new_tensor(facts.std).view(1, -1, 1, 1)
    return pixels.div_(255).sub_(mean).div_(std)  # in place: the floats are a copy of the images already


def fitted(image: Tensor, facts: TaskFacts) -> Tensor:
    """One image in the size that the model takes: resized and cut as by :func:`preprocess`, not normalised.

    It is rounded to uint8 in between, as stored images and the ecosystem's transforms are.

    Args:
        image: uint8 ``(C, H, W)``.
        facts: of the model that will see it.

    Returns:
        uint8 ``(C, S, S)``.
    """
    size = _resized(image, facts)
    if size is not None:
        how = "nearest-exact" if facts.interpolation == "nearest" else facts.interpolation
        image = resize(image, size, v2.InterpolationMode(how), antialias=True)
    return _centre_crop(image, facts.input_size)


def _resized(images: Tensor, facts: TaskFacts) -> list[int] | None:
    """Height and width after resizing; None where they stay."""
    height, width = images.shape[-2:]
    shorter = math.floor(facts.input_size / facts.crop)
    if min(height, width) == shorter:
        return None
    return [max(shorter, round(side * shorter / min(height, width))) for side in (height, width)]


def _resize(pixels: Tensor, facts: TaskFacts) -> Tensor:
    size = _resized(pixels, facts)
    if size is None:
        return pixels
    if facts.interpolation == "nearest":
        return interpolate(pixels, size, mode="nearest-exact")
    # Bicubic interpolation overshoots at edges. Values outside of [0, 255] are clipped, as in stored images.
    return interpolate(pixels, size, mode=facts.interpolation, antialias=True, align_corners=False).clamp(0, 255)


def _centre_crop(pixels: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]
