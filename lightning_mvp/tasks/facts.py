"""What a model must know about its task before it may see an image. Plain data: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class TaskFacts:
    """Name, classes and preprocessing of one task, stored with every zoo entry: each model is fed as it was trained.

    An image is resized to `input_size / crop`, centre-cropped to `input_size`, divided by 255 and normalised by `mean`
    and `std`, which hold one number per channel.

    Args:
        name: of the task; it becomes part of file names.
        classes: in the order of the labels.
        input_size: height and width the model expects.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].
        interpolation: "nearest", "bilinear" or "bicubic".
        crop: fraction of the resized side that the centre crop keeps, in (0, 1].

    Raises:
        ValueError: for any field outside the ranges above.

    Example:
        >>> facts = TaskFacts("pets", ("cat", "dog"), input_size=32, mean=(0.5,), std=(0.25,))
        >>> facts.channels, facts == TaskFacts.from_dict(facts.to_dict())
        (1, True)
    """

    name: str
    classes: tuple[str, ...]
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 1.0

    def __post_init__(self) -> None:
        # JSON and Hydra give lists where tuples are meant. A frozen dataclass can be filled by object.__setattr__ only.
        for field in ("classes", "mean", "std"):
            if isinstance(getattr(self, field), str):
                raise ValueError(f"Expected argument `{field}` to be a sequence, but got {getattr(self, field)!r}.")
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if (
            not isinstance(self.name, str)
            or not self.name.strip()
            or not self.name.isprintable()
            or set("/\\") & set(self.name)
        ):
            raise ValueError(
                f"Expected argument `name` to be a printable name without slashes, but got {self.name!r}. "
                "It becomes part of file names."
            )
        if not self.classes or not all(isinstance(name, str) and name for name in self.classes):
            raise ValueError(f"Expected argument `classes` to be one or more class names, but got {self.classes!r}.")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"Expected argument `classes` to hold each class once, but got {twice} more than once.")
        if not isinstance(self.input_size, int) or isinstance(self.input_size, bool) or self.input_size < 1:
            raise ValueError(f"Expected argument `input_size` to be a positive int, but got {self.input_size!r}.")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                "Expected arguments `mean` and `std` to hold one number per channel, "
                f"but got {len(self.mean)} and {len(self.std)} numbers."
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"Expected argument `mean` to be finite, but got {self.mean}.")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"Expected argument `std` to be finite and above 0, but got {self.std}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Expected argument `interpolation` to be one of {INTERPOLATIONS}, but got {self.interpolation!r}."
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"Expected argument `crop` to be a float in (0, 1], but got {self.crop}.")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: the inverse of `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskFacts:
        """From plain JSON types; a missing or unknown key is refused by name."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted(known - {"interpolation", "crop"} - set(values))
        if unknown or missing:
            raise ValueError(
                f"Expected task facts with keys {sorted(known)}, but missing {missing}, unknown {unknown}."
            )
        return cls(**values)
