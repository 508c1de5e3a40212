"""Data sets by name, each partitioned once per seed and never per task: no task's test image trains another's model."""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_mvp.tasks.glyphs import CHARACTERS, class_name, load_glyphs
from lightning_mvp.tasks.partition import ImageData, Part, drop_duplicates, stratified_split
from lightning_mvp.tasks.sources import (
    Source,
    arrays_classes,
    load_arrays,
    load_digits,
    load_huggingface,
    load_imagefolder,
    load_torchvision,
    torchvision_classes,
)

__all__ = ["DATA_SETS", "ImageData", "Part", "Source", "class_names_of", "load_data"]

DATA_SETS = ("glyphs", "digits", "torchvision", "imagefolder", "huggingface", "arrays")


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
    """Load a data set and split it into its train, validation and test parts.

    The result is cached: a second call with equal arguments returns the same object, unless one of them is a list or a
    mapping.

    If the set ships a test part, that is the test part; otherwise `test_fraction` of it is drawn. Val is drawn from
    what is left unless shipped. Draws are stratified and seeded. Then train and val images that are byte-equal to a
    test image are dropped, and train images that are byte-equal to a val image.

    Image files are listed and not opened: "imagefolder", "huggingface", and those of torchvision's sets that are files.
    Of these a task's own images are compared, file with file, once it asks for them: equal pixels in different files
    pass.

    Args:
        name: "glyphs", "digits", "torchvision", "imagefolder", "huggingface" or "arrays"; or the import path of a
            function of your own, "mypackage.images", that returns a :class:`~lightning_mvp.tasks.sources.Source`. It is
            called with `options`, and with `root`, `image_size` and `seed` where it has such arguments.
        root: folder of the files, for the last four.
        image_size: height and width of the images; None keeps them as they are (glyphs: 32).
        seed: the partition (and the glyphs) follow from it.
        download: fetch missing files, for "torchvision". Under several processes do this once beforehand.
        val_fraction: share of the training images drawn for val, in (0, 1); not for glyphs.
        mean: of each channel in [0, 1], to normalise with; None takes that of the training images, of image files from
            2,000 of them. A backbone with other people's weights wants the one that it was trained with.
        std: likewise.
        options: `test_fraction` (default 0.2; where no test part is shipped); for torchvision `dataset`, its class
            name, and arguments of its constructor; for huggingface `path`, `image`, `label`, and arguments of
            `load_dataset`; for arrays `train` and `test`, paths of npz files; for glyphs `characters`,
            `per_class_train`, `per_class_val`, `per_class_test`.

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
    if train.in_memory:
        train, val = drop_duplicates(train, val, test)
    size = None if train.in_memory else image_size
    about = selection_hash(
        name,
        image_size=image_size,
        seed=seed,
        val_fraction=val_fraction,
        mean=moments[0],
        std=moments[1],
        **dict(options),
    )
    title = title_of(name, arguments)
    return ImageData(title, source.classes, train, val, test, *moments, image_size=size, about=about)  # type: ignore[arg-type, misc]


def title_of(name: str, options: Mapping[str, Any]) -> str:
    """What a data set is called."""
    return str(options["dataset"]).lower() if name == "torchvision" else name.rpartition(".")[2]


def selection_hash(
    name: str,
    *,
    image_size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: Any = None,
    download: bool = False,
    **options: Any,
) -> str:
    """What tells one selection of images from another without looking at them, by the arguments of :func:`load_data`.

    The folder is no part of it: the same images may lie elsewhere.
    """
    moments = [None if values is None else list(values) for values in (mean, std)]
    selection = (name, image_size, seed, val_fraction, moments, sorted((key, str(options[key])) for key in options))
    return hashlib.blake2b(repr(selection).encode(), digest_size=8).hexdigest()


def class_names_of(name: str, **options: Any) -> tuple[str, ...]:
    """The classes of a data set, as :func:`load_data` names them, without a pixel read where its files allow that.

    Args:
        name: as for :func:`load_data`.
        options: likewise.

    Example:
        >>> class_names_of("glyphs", characters="AB")
        ('latin-capital-a', 'latin-capital-b')
    """
    if name == "glyphs":
        return tuple(class_name(character) for character in options.get("characters") or CHARACTERS)
    if name == "digits":
        return tuple(f"digit-{digit}" for digit in range(10))
    if name == "arrays" and "train" in options:
        return arrays_classes(Path(options.get("root") or "", options["train"]))
    if name == "torchvision" and "dataset" in options and not options.get("download"):
        folder = options.get("root")
        found = torchvision_classes(
            root=None if folder is None else Path(folder).expanduser().resolve(), dataset=options["dataset"]
        )
        if found is not None:
            return found
    return load_data(name, **options).classes


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
    if name == "huggingface":
        return load_huggingface(root=root, image_size=image_size, download=download, **options)
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
