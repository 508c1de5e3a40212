"""One task of a data set as Lightning wants it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.loader import TaskLoader, check_loading
from lightning_mvp.tasks.partition import ImageData, Part
from lightning_mvp.tasks.splits import TaskSpec

__all__ = ["TaskDataModule", "TaskLoader"]

PartName = Literal["train", "val", "test"]


class TaskDataModule(L.LightningDataModule):
    """Some classes of a data set as one task, over the data set's one partition.

    Labels are positions in `classes`. Everything that learns or chooses (training, scores, LEEP, batch-norm
    re-estimation) is served from the train part alone; `val_images` and `test_images` are for measuring.

    Args:
        data: a loaded data set, or the name of one for `load_data`.
        classes: the task's classes in the order of its labels; None takes all.
        name: of the task; by default the data set's, with a hash of `classes` if they are given.
        batch_size: images per batch and process.
        seed: of partition (if `data` is a name), order and augmentation.
        augment: "none", "crop" or "crop_flip" (see `TaskLoader`).
        images_per_class: keep only so many training images of each class, drawn by `seed`.
        data_options: further arguments of `load_data` if `data` is a name.

    Raises:
        ValueError: for an unknown or repeated class, fewer than two, or more `images_per_class` than there are.

    Example:
        >>> options = {"characters": "ABDE", "per_class_train": 4}
        >>> task = TaskDataModule("glyphs", classes=["latin-capital-b", "latin-capital-a"], data_options=options)
        >>> images, labels = next(iter(task.train_dataloader()))
        >>> tuple(images.shape), sorted(labels.tolist())
        ((8, 3, 32, 32), [0, 0, 0, 0, 1, 1, 1, 1])
    """

    facts: TaskFacts
    spec: TaskSpec

    def __init__(
        self,
        data: ImageData | str = "glyphs",
        classes: Sequence[str] | None = None,
        name: str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        augment: str = "crop",
        images_per_class: int | None = None,
        data_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, augment)
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
        self.data = data
        self.spec = TaskSpec(name, chosen)
        self.facts = TaskFacts(name, chosen, data.image_size, data.mean, data.std)
        wanted = torch.tensor([data.classes.index(label) for label in chosen])
        self._train, self._val, self._test = (_of_classes(part, wanted) for part in (data.train, data.val, data.test))
        if images_per_class is not None:
            counts = self._train.labels.bincount(minlength=len(chosen))
            if not 1 <= images_per_class <= int(counts.min()):
                raise ValueError(
                    f"Expected argument `images_per_class` to be an int in [1, {int(counts.min())}], the training "
                    f"images of class {chosen[int(counts.argmin())]!r}, but got {images_per_class}."
                )
            self._train = self._train[_balanced(self._train.labels, images_per_class, seed)]

    def train_dataloader(self) -> TaskLoader:
        return self._loader(self._train, train=True)

    def val_dataloader(self) -> TaskLoader:
        return self._loader(self._val)

    def test_dataloader(self) -> TaskLoader:
        return self._loader(self._test)

    def train_images(self) -> tuple[Tensor, Tensor]:
        """All training images of the task, raw: uint8 (N, C, H, W) and labels (N,)."""
        return self._train.images, self._train.labels

    def val_images(self) -> tuple[Tensor, Tensor]:
        """All validation images of the task, raw."""
        return self._val.images, self._val.labels

    def test_images(self) -> tuple[Tensor, Tensor]:
        """All test images of the task, raw."""
        return self._test.images, self._test.labels

    def scoring_images(self, n: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Training images for scores such as LEEP: raw, not augmented, equally many of every class.

        Args:
            n: at most so many in all.
            seed: of the draw.

        Raises:
            ValueError: if `n` is less than the number of classes.
        """
        part = self.scoring_part(n, seed)
        return part.images, part.labels

    def scoring_part(self, n: int = 500, seed: int = 0) -> Part:
        """The images of :meth:`scoring_images`, as a part: for a pass that opens them batch by batch."""
        if n < len(self.spec.classes):
            raise ValueError(
                f"Expected argument `n` to be at least {len(self.spec.classes)}, one image per class, but got {n}."
            )
        rarest = int(self._train.labels.bincount(minlength=len(self.spec.classes)).min())
        return self._train[_balanced(self._train.labels, min(rarest, n // len(self.spec.classes)), seed)]

    def part(self, name: PartName) -> Part:
        """The images and labels of one part of the task: "train", "val" or "test"."""
        return {"train": self._train, "val": self._val, "test": self._test}[name]

    def pass_loader(self, part: Part | PartName, facts: TaskFacts | None = None, batch_size: int = 64) -> TaskLoader:
        """Batches for a pass that trains nothing: in the order of the part, not augmented, on this process alone.

        Args:
            part: which images; those of :meth:`part` or :meth:`scoring_part`, or some of them.
            facts: of the model that will see them, if they are not the task's own.
            batch_size: images a batch.
        """
        chosen = self.part(part) if isinstance(part, str) else part
        return TaskLoader(chosen, facts or self.facts, batch_size=batch_size)

    def _loader(self, part: Part, train: bool = False) -> TaskLoader:
        trainer = self.trainer
        return TaskLoader(
            part,
            self.facts,
            batch_size=self.batch_size,
            train=train,
            augment=self.augment,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
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
            raise ValueError(
                f"Expected class {name!r} of data set {data.name!r} to have training images, but got none."
            )
    return tuple(classes)


def _of_classes(part: Part, wanted: Tensor) -> Part:
    """The images of the wanted classes, with labels counted in their order."""
    matches = part.labels.unsqueeze(1) == wanted
    index = matches.any(1).nonzero().flatten()
    return Part(part.images[index], matches[index].int().argmax(1))


def _balanced(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of `per_class` random members of every class, class by class."""
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members])
