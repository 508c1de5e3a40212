"""One task of a data set as Lightning wants it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, get_args
from weakref import WeakSet

import lightning as L
import torch
from torch import Tensor

from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.images import BrokenImageError, Images
from lightning_mvp.tasks.loader import TaskLoader, check_loading
from lightning_mvp.tasks.mixing import Mixture
from lightning_mvp.tasks.partition import ImageData, Part, drop_duplicates
from lightning_mvp.tasks.preprocessing import fitted
from lightning_mvp.tasks.splits import TaskSpec

__all__ = ["TaskDataModule", "TaskLoader"]

PartName = Literal["train", "val", "test"]
Broken = Literal["refuse", "skip"]


class TaskDataModule(L.LightningDataModule):
    """Some classes of a data set as one task, over the data set's one partition.

    Labels are positions in `classes`. Everything that learns or chooses (training, scores, LEEP, batch-norm
    re-estimation) is served from the train part alone; the val and test parts are for measuring.

    Of images that are opened when they are asked for, those of the task's classes are looked through once, when the
    first of them is asked for: files that an image of another part equals are left out, and files that can't be read
    are refused or left out, before anything is trained on the others.

    Args:
        data: a loaded data set, or the name of one for `load_data`.
        classes: the task's classes in the order of its labels; None takes all.
        name: of the task; by default the data set's, with a hash of `classes` if they are given.
        batch_size: images per batch and process.
        seed: of partition (if `data` is a name), order and augmentation.
        augment: "none", "crop", "crop_flip", "imagenet", "randaug", a callable, or a mapping with its `_target_` (see
            `TaskLoader`).
        images_per_class: keep only so many training images of each class, drawn by `seed`.
        data_options: further arguments of `load_data` if `data` is a name.
        preprocessing: how the model sees images: `input_size`, `mean`, `std`, and perhaps `interpolation` and `crop`,
            as `ModelZoo.preprocessing` and `timm_preprocessing` have them. None: the size, mean and standard deviation
            of the data set's images.
        num_workers: number of loading processes, or "auto" (see `TaskLoader`).
        balance: whether an epoch shows each class equally often.
        mixing: arguments of `timm.data.Mixup`, by which training images are mixed; None: they are not.
        broken: what to do with image files that can't be read: "refuse" names the first, "skip" leaves them out with a
            warning.

    Raises:
        ValueError: for an unknown or repeated class, fewer than two, or more `images_per_class` than there are.

    Example:
        >>> options = {"characters": "ABDE", "per_class_train": 4}
        >>> task = TaskDataModule("glyphs", classes=["latin-capital-b", "latin-capital-a"], data_options=options)
        >>> images, labels = next(iter(task.train_dataloader()))
        >>> tuple(images.shape), sorted(labels.tolist())
        ((8, 3, 32, 32), [0, 0, 0, 0, 1, 1, 1, 1])
    """

    spec: TaskSpec

    def __init__(
        self,
        data: ImageData | str = "glyphs",
        classes: Sequence[str] | None = None,
        name: str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        augment: Any = "crop",
        images_per_class: int | None = None,
        data_options: Mapping[str, Any] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        num_workers: Any = "auto",
        balance: bool = False,
        mixing: Mapping[str, Any] | None = None,
        broken: Broken = "refuse",
    ) -> None:
        super().__init__()
        check_loading(batch_size, augment, num_workers)
        if broken not in get_args(Broken):
            raise ValueError(f"Expected argument `broken` to be one of {get_args(Broken)}, but got {broken!r}.")
        if isinstance(data, str):
            data = load_data(data, **{"seed": seed, **(data_options or {})})
        elif data_options:
            raise ValueError("Expected argument `data_options` only with the name of a data set, but got loaded data.")
        chosen = _check_classes(data, data.classes if classes is None else classes)
        if name is None:
            digest = hashlib.blake2b("\n".join(chosen).encode(), digest_size=4).hexdigest()
            name = data.name if classes is None else f"{data.name}-{digest}"
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.num_workers = num_workers
        self.balance = balance
        self.mixing = mixing
        self.data = data
        self.broken = broken
        self.images_per_class = images_per_class
        self.spec = TaskSpec(name, chosen)
        if mixing is not None:
            Mixture(mixing, len(chosen))
        self._preprocessing = preprocessing
        self._training: WeakSet[TaskLoader] = WeakSet()
        if preprocessing is not None or data.in_memory:
            self.facts  # noqa: B018 (refuses what can't be, before any work)
        wanted = [data.classes.index(label) for label in chosen]
        parts = data.train, data.val, data.test
        self._listed = tuple(_of_classes(part, wanted, len(data.classes)) for part in parts)
        if images_per_class is not None:
            self._require_enough(self._listed[0], images_per_class)
        if data.in_memory:
            self._parts  # noqa: B018

    @cached_property
    def facts(self) -> TaskFacts:
        """What a model must know about the task; of image files without `preprocessing` some are opened for it."""
        told = self._preprocessing
        if told is None:
            size = self.data.image_size or common_size(self._parts, self.data.name)
            told = {"input_size": size, "mean": self.data.mean, "std": self.data.std}
        return TaskFacts(self.spec.name, self.spec.classes, **told)

    @cached_property
    def _parts(self) -> tuple[Part, Part, Part]:
        """Train, val and test, as they are used."""
        train, val, test = self._listed
        if not self.data.in_memory:
            train, val = drop_duplicates(train, val, test)
            train, val, test = (readable(part, self.broken) for part in (train, val, test))
            _require_images(self.data, train, self.spec.classes)
        if self.images_per_class is not None:
            self._require_enough(train, self.images_per_class)
            train = train[_balanced(train.labels, self.images_per_class, self.seed)]
        return train, val, test

    def _require_enough(self, train: Part, count: int) -> None:
        counts = train.labels.bincount(minlength=len(self.spec.classes))
        if not 1 <= count <= int(counts.min()):
            raise ValueError(
                f"Expected argument `images_per_class` to be an int in [1, {int(counts.min())}], the training "
                f"images of class {self.spec.classes[int(counts.argmin())]!r}, but got {count}."
            )

    def train_dataloader(self) -> TaskLoader:
        loader = self._loader("train")
        self._training.add(loader)
        return loader

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a rank that is spawned: all but the loaders of this process, which stay here."""
        return {name: value for name, value in self.__dict__.items() if name != "_training"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._training = WeakSet()

    def teardown(self, stage: str) -> None:
        """Lightning calls it after each run: the loading processes of training, which stay from epoch to epoch, end."""
        for loader in self._training:
            loader.close()

    def val_dataloader(self) -> TaskLoader:
        return self._loader("val")

    def test_dataloader(self) -> TaskLoader:
        return self._loader("test")

    def train_images(self) -> tuple[Tensor, Tensor]:
        """All training images of the task: uint8 (N, C, H, W), raw, and labels (N,).

        Image files are all opened, and brought to the model's size. :meth:`pass_loader` opens them batch by batch.
        """
        return self._in_memory(self.part("train"))

    def val_images(self) -> tuple[Tensor, Tensor]:
        """All validation images of the task, as in :meth:`train_images`."""
        return self._in_memory(self.part("val"))

    def test_images(self) -> tuple[Tensor, Tensor]:
        """All test images of the task, as in :meth:`train_images`."""
        return self._in_memory(self.part("test"))

    def scoring_images(self, n: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Training images for scores such as LEEP: raw, not augmented, equally many of every class.

        Args:
            n: at most so many in all.
            seed: of the draw.

        Raises:
            ValueError: if `n` is less than the number of classes.
        """
        return self._in_memory(self.scoring_part(n, seed))

    def scoring_part(self, n: int = 500, seed: int = 0) -> Part:
        """The images of :meth:`scoring_images`, as a part: for a pass that opens them batch by batch."""
        if n < len(self.spec.classes):
            raise ValueError(
                f"Expected argument `n` to be at least {len(self.spec.classes)}, one image per class, but got {n}."
            )
        train = self._parts[0]
        rarest = int(train.labels.bincount(minlength=len(self.spec.classes)).min())
        return train[_balanced(train.labels, min(rarest, n // len(self.spec.classes)), seed)]

    def part(self, name: PartName) -> Part:
        """The images and labels of one part of the task: "train", "val" or "test"."""
        return self._parts[("train", "val", "test").index(name)]

    def pass_loader(self, part: Part | PartName, facts: TaskFacts | None = None, batch_size: int = 64) -> TaskLoader:
        """Batches for a pass that trains nothing: in the order of the part, not augmented, on this process alone.

        Args:
            part: which images; those of :meth:`part` or :meth:`scoring_part`, or some of them.
            facts: of the model that will see them, if they are not the task's own.
            batch_size: images a batch.
        """
        chosen = self.part(part) if isinstance(part, str) else part
        return TaskLoader(chosen, facts or self.facts, batch_size=batch_size, num_workers=self.num_workers)

    def _in_memory(self, part: Part) -> tuple[Tensor, Tensor]:
        if isinstance(part.images, Tensor):
            return part.images, part.labels
        return torch.stack([fitted(part.open(index), self.facts) for index in range(len(part))]), part.labels

    def _loader(self, name: PartName) -> TaskLoader:
        trainer = self.trainer
        device = getattr(getattr(trainer, "strategy", None), "root_device", None)
        return TaskLoader(
            self.part(name),
            self.facts,
            batch_size=self.batch_size,
            train=name == "train",
            augment=self.augment,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            num_workers=self.num_workers,
            pin_memory=device is not None and device.type == "cuda",
            balance=self.balance,
            mixing=self.mixing,
        )


def _check_classes(data: ImageData, classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or len(classes) < 2:
        raise ValueError(f"Expected argument `classes` to be two or more class names, but got {classes!r}.")
    for name in classes:
        if name not in data.classes:
            close = get_close_matches(str(name), data.classes, n=3) or data.classes[:3]
            raise ValueError(
                f"Expected argument `classes` to hold classes of data set {data.name!r}, but got {name!r}. "
                f"It has, for example: {', '.join(close)}."
            )
    if len(set(classes)) != len(classes):
        raise ValueError("Expected argument `classes` to hold each class once, but some are repeated.")
    present = data.train.labels.bincount(minlength=len(data.classes))
    for name in classes:
        if not present[data.classes.index(name)]:
            raise _no_images(data, name)
    return tuple(classes)


def _no_images(data: ImageData, name: str) -> ValueError:
    return ValueError(
        f"Expected class {name!r} of data set {data.name!r} to have training images, but got none. Add some, or leave "
        "the class out of the task."
    )


def _require_images(data: ImageData, train: Part, classes: Sequence[str]) -> None:
    """Refuse a class that has no image left."""
    for name, count in zip(classes, train.labels.bincount(minlength=len(classes)).tolist(), strict=True):
        if not count:
            raise _no_images(data, name)


def readable(part: Part, broken: Broken) -> Part:
    """A part without the files that can't be read.

    Args:
        part: images that are opened when they are asked for.
        broken: "refuse" raises the first one's error; "skip" leaves all of them out, with a warning.

    Raises:
        BrokenImageError: naming the file.
    """
    assert isinstance(part.images, Images)
    good, errors = [], []
    for index in range(len(part)):
        try:
            part.images.check(index)
            good.append(index)
        except BrokenImageError as error:
            if broken == "refuse":
                raise
            errors.append(str(error))
    if not errors:
        return part
    more = f" ({len(errors) - 1} more are left out as well)" if len(errors) > 1 else ""
    warnings.warn(f"Leaving out an image that can't be read: {errors[0]}{more}", stacklevel=2)
    return part[torch.tensor(good, dtype=torch.int64)]


def common_size(parts: Sequence[Part], name: str) -> int:
    """The one size of all images of some parts.

    Raises:
        ValueError: they differ, or aren't square.
    """
    found: dict[tuple[int, int], str] = {}
    for part in parts:
        assert isinstance(part.images, Images)
        for index in range(len(part)):
            found.setdefault(part.images.size(index), part.images.name(index))
            if len(found) > 1:
                (one, first), (other, second) = list(found.items())[:2]
                raise ValueError(
                    f"Expected images of one size in data set {name!r}, but {first} has {one[0]} × {one[1]} and "
                    f"{second} has {other[0]} × {other[1]} pixels. Set `image_size`, or give `preprocessing`."
                )
    ((width, height),) = found
    if width != height:
        raise ValueError(
            f"Expected data set {name!r} to have square images, but got {height} × {width}. Set `image_size`, or give "
            "`preprocessing`."
        )
    return width


def _of_classes(part: Part, wanted: Sequence[int], n_classes: int) -> Part:
    """The images of the wanted classes, with labels counted in their order."""
    position = torch.full((n_classes,), -1)
    position[list(wanted)] = torch.arange(len(wanted))
    labels = position[part.labels]
    index = (labels >= 0).nonzero().flatten()
    return Part(part[index].images, labels[index])


def _balanced(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of `per_class` random members of every class, class by class."""
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members])
