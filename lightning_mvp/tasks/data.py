"""Data sets by name, each partitioned once per seed and never per task: no task's test image trains another's model."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_mvp.tasks.glyphs import load_glyphs
from lightning_mvp.tasks.partition import ImageData, Part, drop_duplicates, stratified_split
from lightning_mvp.tasks.sources import Source, load_arrays, load_digits, load_imagefolder, load_torchvision

__all__ = ["DATA_SETS", "ImageData", "Part", "Source", "load_data"]

DATA_SETS = ("glyphs", "digits", "torchvision", "imagefolder", "arrays")


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    download: bool = False,
    val_fraction: float = 0.1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> ImageData:
    """Load a data set and its one train/val/test partition. The same arguments give the same object within a process,
    unless one of them is a list or a mapping.

    If the set ships a test part, that is the test part; otherwise `test_fraction` of it is drawn. Val is drawn from
    what is left unless shipped. Draws are stratified and seeded. Then train and val images that are byte-equal to a
    test image are dropped, and train images that are byte-equal to a val image.

    Args:
        name: "glyphs", "digits", "torchvision", "imagefolder" or "arrays"; or the import path of a function of your
            own, "mypackage.images", that returns a :class:`~lightning_mvp.tasks.sources.Source`. It is called with
            `options`, and with `root`, `image_size` and `seed` where it has such arguments.
        root: folder of the files, for the last three.
        image_size: height and width of the images; None keeps them as they are (glyphs: 32).
        seed: the partition (and the glyphs) follow from it.
        download: fetch missing files, for "torchvision". Under several processes do this once beforehand.
        val_fraction: share of the training images drawn for val, in (0, 1); not for glyphs.
        mean: of each channel in [0, 1], to normalise with; None takes that of the training images. A backbone with
            other people's weights wants the one that it was trained with.
        std: likewise.
        options: `test_fraction` (default 0.2; where no test part is shipped); for torchvision `dataset`, its class
            name, and arguments of its constructor; for arrays `train` and `test`, paths of npz files; for glyphs
            `characters`, `per_class_train`, `per_class_val`, `per_class_test`.

    Raises:
        ValueError: for an unknown name or option, or malformed data.
        FileNotFoundError: for missing files.

    Example:
        >>> data = load_data("glyphs", characters="ABDE", per_class_train=3, per_class_val=1, per_class_test=2)
        >>> data.classes[0], tuple(data.train.images.shape), len(data.test)
        ('latin-capital-a', (12, 3, 32, 32), 8)
    """
    if name not in DATA_SETS and "." not in str(name):
        close = get_close_matches(str(name), DATA_SETS, n=1) or ["glyphs"]
        raise ValueError(
            f"Expected argument `name` to be one of {DATA_SETS}, or the import path of a function of your own, but got "
            f"{name!r}. Did you mean {close[0]!r}?"
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"Expected argument `image_size` to be a positive int or None, but got {image_size}.")
    folder = None if root is None else Path(root).expanduser().resolve()
    moments = tuple(None if values is None else tuple(values) for values in (mean, std))
    arguments = (name, folder, image_size, seed, download, val_fraction, moments, tuple(sorted(options.items())))
    try:
        hash(arguments)
    except TypeError:  # a function of somebody's own may take lists or mappings, which can't be keys of a cache
        return _load.__wrapped__(*arguments)
    return _load(*arguments)


@lru_cache(maxsize=4)
def _load(
    name: str,
    root: Path | None,
    image_size: int | None,
    seed: int,
    download: bool,
    val_fraction: float,
    moments: tuple[tuple[float, ...] | None, ...],
    options: tuple[tuple[str, Any], ...],
) -> ImageData:
    arguments = dict(options)
    test_fraction = 0.2 if name == "glyphs" else arguments.pop("test_fraction", 0.2)
    for argument, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(f"Expected argument `{argument}` to be a float in (0, 1), but got {fraction}.")
    try:
        source = _read(name, root, image_size, seed, download, arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(
            f"Expected options that data set {name!r} knows, but got {sorted(arguments)}: {error}."
        ) from error
    train, val, test = source.train, source.val, source.test
    if test is None:
        kept, drawn = stratified_split(train.labels, test_fraction, seed)
        train, test = train[kept], train[drawn]
    if val is None:
        kept, drawn = stratified_split(train.labels, val_fraction, seed + 1)
        train, val = train[kept], train[drawn]
    train, val = drop_duplicates(train, val, test)
    title = str(arguments["dataset"]).lower() if name == "torchvision" else name.rpartition(".")[2]
    return ImageData(title, source.classes, train, val, test, *moments)  # type: ignore[arg-type]


def _read(
    name: str, root: Path | None, image_size: int | None, seed: int, download: bool, options: Mapping[str, Any]
) -> Source:
    if name == "glyphs":
        classes, parts = load_glyphs(image_size=image_size or 32, seed=seed, **options)
        return Source(classes, parts["train"], parts["val"], parts["test"])
    if name == "digits":
        return load_digits(image_size=image_size, **options)
    if name == "torchvision":
        return load_torchvision(root=root, image_size=image_size, download=download, **options)
    if name == "imagefolder":
        return load_imagefolder(root=root, image_size=image_size, **options)
    if name == "arrays":
        return load_arrays(root=root, image_size=image_size, **options)
    return _load_own(name, {"root": root, "image_size": image_size, "seed": seed}, options)


def _load_own(path: str, common: Mapping[str, Any], options: Mapping[str, Any]) -> Source:
    """What a user's function of this import path returns."""
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `name` to be the import path of a function, but {path!r} can't be imported ({error}). "
            "Install its package, or start Python where it can be found."
        ) from error
    wanted = inspect.signature(function).parameters
    made = function(**{name: value for name, value in common.items() if name in wanted}, **options)
    if not isinstance(made, Source):
        raise ValueError(f"Expected {path} to return a Source, but got {type(made).__name__}.")
    return made
