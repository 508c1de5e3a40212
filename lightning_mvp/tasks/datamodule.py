"""One task's images as Lightning wants them: batches that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.partition import ImageData, Part
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.tasks.splits import TaskSpec

AUGMENTATIONS = ("none", "crop", "crop_flip")


class TaskLoader:
    """Batches of one part: cut from a uint8 tensor, augmented by one indexing operation, preprocessed by `facts`.

    The order and the augmentation of image i in epoch e are functions of (seed, e, i): they change neither with the
    batch size nor with the number of processes. A full pass moves on to the next epoch; Lightning says which epoch it
    is by `sampler.set_epoch`. A last training batch of one image joins the batch before it (batch norm needs two).
    Over several processes the order is wrapped around until all ranks have equally many images.

    Shapes: yields float32 (B, C, S, S) and int64 (B,).

    Args:
        part: images and labels.
        facts: preprocessing of the task.
        batch_size: images per batch and process.
        train: shuffle and augment.
        augment: "none", "crop" (random shift by up to S/8 with zeros around) or "crop_flip" (and mirror).
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: for an empty part or arguments out of range.

    Example:
        >>> part = Part(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> facts = TaskFacts("toy", ("a", "b", "c", "d", "e"), 8, (0.5,), (0.5,))
        >>> [len(labels) for _, labels in TaskLoader(part, facts, batch_size=2, train=True)]
        [2, 3]
    """

    def __init__(
        self,
        part: Part,
        facts: TaskFacts,
        *,
        batch_size: int = 32,
        train: bool = False,
        augment: str = "none",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(part):
            raise ValueError(
                f"Expected task {facts.name!r} to have images in every part it is asked for, but got none."
            )
        _check_loading(batch_size, augment)
        if not 0 <= rank < world_size:
            raise ValueError(f"Expected argument `rank` to be in [0, {world_size}), but got {rank}.")
        self.part = part
        self.facts = facts
        self.batch_size = batch_size
        self.train = train
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0  # of the batch that comes next
        self.position = 0  # in its epoch
        self._resume = False

    @property
    def sampler(self) -> TaskLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Epoch and position of the batch that comes next."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass begin where `state` was taken."""
        self.epoch, self.position, self._resume = state["epoch"], state["position"], True

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self._starts()) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.position if self._resume else 0
        self._resume = False
        epoch, starts = self.epoch, self._starts()
        order, shifts, mirrored = self._draw(epoch)
        for position in range(first, len(self)):
            last = position + 1 == len(self)
            # Before the batch leaves: a checkpoint taken while it is trained on must point past it.
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
            index = order[starts[position] : starts[position + 1]]
            images = self._augmented(self.part.images[index], shifts[index], mirrored[index])
            yield preprocess(images, self.facts), self.part.labels[index]

    def _starts(self) -> list[int]:
        """Bounds of the batches among the images of one rank."""
        images = -(-len(self.part) // self.world_size)
        starts = list(range(0, images, self.batch_size))
        if self.train and images > 1 and images - starts[-1] == 1 < self.batch_size:
            starts.pop()
        return [*starts, images]

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Order of this rank, and for each image of the part its shift and whether it is mirrored."""
        n = len(self.part)
        order, shifts, mirrored = torch.arange(n), torch.zeros(n, 2, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
        if self.train:
            key = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
            order = torch.randperm(n, generator=generator)
            shifts = torch.randint(2 * self._margin + 1, (n, 2), generator=generator)
            mirrored = torch.rand(n, generator=generator) < 0.5
        wrapped = torch.arange(-(-n // self.world_size) * self.world_size) % n
        return order[wrapped[self.rank :: self.world_size]], shifts, mirrored

    @property
    def _margin(self) -> int:
        return self.part.images.shape[-1] // 8

    def _augmented(self, images: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        if not self.train or self.augment == "none":
            return images
        height, width = images.shape[-2:]
        # Every window of the padded image is a view; picking one per image is the only copy.
        windows = pad(images, [self._margin] * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(images)), :, shifts[:, 0], shifts[:, 1]]
        if self.augment == "crop_flip":
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        return images


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
        _check_loading(batch_size, augment)
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
        if n < len(self.spec.classes):
            raise ValueError(
                f"Expected argument `n` to be at least {len(self.spec.classes)}, one image per class, but got {n}."
            )
        rarest = int(self._train.labels.bincount(minlength=len(self.spec.classes)).min())
        part = self._train[_balanced(self._train.labels, min(rarest, n // len(self.spec.classes)), seed)]
        return part.images, part.labels

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


def _check_loading(batch_size: int, augment: str) -> None:
    if batch_size < 1:
        raise ValueError(f"Expected argument `batch_size` to be an int of at least 1, but got {batch_size}.")
    if augment not in AUGMENTATIONS:
        raise ValueError(f"Expected argument `augment` to be one of {AUGMENTATIONS}, but got {augment!r}.")


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
