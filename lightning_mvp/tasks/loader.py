"""Batches that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.images import BrokenImageError
from lightning_mvp.tasks.mixing import Mixing, Mixture
from lightning_mvp.tasks.partition import Part
from lightning_mvp.tasks.preprocessing import fitted, normalised, preprocess
from lightning_mvp.tasks.transforms import SHIFTS, Augment, random_transform, require_augment, seeded

# More loading processes than these are seldom faster, and each holds batches of its own.
MOST_WORKERS = 8
# Batches that each loading process makes ahead.
PREFETCHED = 2

Workers = int | Literal["auto"]
# Which image, by how much it is moved down and to the right, whether it is mirrored, and the seed of its transform.
Request = tuple[int, int, int, bool, int]


class TaskLoader:
    """Batches of one part, augmented and preprocessed by `facts`.

    The order and the augmentation of image i in epoch e are functions of (seed, e, i): they change neither with the
    batch size nor with the number of processes, of loading processes, or where they are killed. A full pass moves on to
    the next epoch; Lightning says which epoch it is by `sampler.set_epoch`. A last training batch of one image joins
    the batch before it (batch norm needs two). A checkpoint taken while training resumes with exactly the next batch;
    one taken after `fit` stopped inside an epoch begins a new epoch, because Lightning counts the stopped one as done.
    Over several processes the order is wrapped around until all ranks have equally many images.

    Images in memory are cut and augmented in one copy for each batch. Others, and any with a random transform, are
    opened one by one, by loading processes (torch's `DataLoader`), which make batches ahead.

    Shapes: yields float32 (B, C, S, S) and int64 (B,); labels float32 (B, classes) where images are mixed.

    Args:
        part: images and labels.
        facts: preprocessing of the task.
        batch_size: images per batch and process.
        train: shuffle and augment.
        augment: "none", "crop" (random shift by up to S/8 with zeros around), "crop_flip" (and mirror), "imagenet"
            (random part of the image, and mirror), "randaug", or a callable: see
            :func:`~lightning_mvp.tasks.transforms.random_transform`.
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.
        num_workers: number of loading processes; "auto": as many as there are cores for each rank of this machine, at
            most 8, and none for images in memory. 0: this process opens images itself.
        pin_memory: whether batches lie where a GPU copies them from without waiting.
        balance: whether an epoch shows each class equally often: as many images as there are, drawn with replacement.
        mixing: training images are mixed with others of their batch, and their labels likewise; None: they are not.

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
        augment: Augment = "none",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: Workers = "auto",
        pin_memory: bool = False,
        balance: bool = False,
        mixing: Mixing | None = None,
    ) -> None:
        if not len(part):
            raise ValueError(
                f"Expected task {facts.name!r} to have images in every part it is asked for, but got none."
            )
        check_loading(batch_size, augment, num_workers)
        if not 0 <= rank < world_size:
            raise ValueError(f"Expected argument `rank` to be in [0, {world_size}), but got {rank}.")
        self.part = part
        self.facts = facts
        self.batch_size = batch_size
        self.train = train
        self.augment = augment if train else "none"
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.balance = balance and train
        self.mixture = None if mixing is None or not train else Mixture(mixing, len(facts.classes))
        self.epoch = 0  # of the batch that comes next
        self.position = 0  # in its epoch
        self._resume = False
        self._opening: _Opening | None = None

    batch_sampler = None  # Lightning asks for it wherever there is a `sampler`

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

    def close(self) -> None:
        """End the loading processes, if there are any; the next pass starts new ones."""
        self._opening = None

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self._starts()) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.position if self._resume else 0
        self._resume = False
        epoch, starts = self.epoch, self._starts()
        for position, (images, labels) in enumerate(self._batches(epoch, starts, first), first):
            last = position + 1 == len(self)
            # The position moves before the batch is handed out: a checkpoint that is taken while the model trains on
            # this batch must point to the next one.
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
            if self.mixture is not None:
                yield self.mixture.mixed(images, labels, _key(self.seed, epoch, position, self.rank))
            else:
                yield images, labels

    def _batches(self, epoch: int, starts: Sequence[int], first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from one of them on, not mixed yet."""
        order, shifts, mirrored = self._draw(epoch)
        parts = [order[start:stop] for start, stop in zip(starts[first:], starts[first + 1 :], strict=False)]
        # Of images that are drawn several times each drawing has a shift of its own.
        places = torch.arange(starts[first], starts[-1]) * self.world_size + self.rank if self.balance else None
        drawn = parts if places is None else list(places.split([len(part) for part in parts]))
        images = self.part.images
        if isinstance(images, Tensor) and self.augment in SHIFTS:
            for index, own in zip(parts, drawn, strict=True):
                cut = self._cut(images, index, shifts[own], mirrored[own])
                yield preprocess(cut, self.facts), self.part.labels[index]
            return
        if self._opening is None:
            self._opening = _Opening(self.part, self.facts, self.augment, self._workers(), self.pin_memory, self.train)
        moves = torch.zeros_like(shifts) if self.augment not in ("crop", "crop_flip") else shifts - self._margin
        if self.augment != "crop_flip":
            mirrored = torch.zeros_like(mirrored)
        yield from self._opening.batches(
            [
                [
                    (i, *moves[place].tolist(), bool(mirrored[place]), _key(self.seed, epoch, place))
                    for i, place in zip(index.tolist(), own.tolist(), strict=True)
                ]
                for index, own in zip(parts, drawn, strict=True)
            ]
        )

    def _workers(self) -> int:
        if self.num_workers != "auto":
            return int(self.num_workers)
        if self.part.in_memory or len(self.part) <= self.batch_size or multiprocessing.current_process().daemon:
            return 0
        ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(self.world_size, ranks)
        return max(1, min(MOST_WORKERS, cores() // ranks_here))

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
            generator = torch.Generator().manual_seed(_key(self.seed, epoch))
            order = torch.randperm(n, generator=generator)
            shifts = torch.randint(2 * self._margin + 1, (n, 2), generator=generator)
            mirrored = torch.rand(n, generator=generator) < 0.5
            if self.balance:
                labels = self.part.labels
                rarity = 1 / labels.bincount(minlength=1).clamp_min(1).double()
                order = torch.multinomial(rarity[labels], n, replacement=True, generator=generator)
        wrapped = torch.arange(-(-n // self.world_size) * self.world_size) % n
        if self.balance:  # a shift belongs to a drawing, and so it is wrapped likewise
            shifts, mirrored = shifts[wrapped], mirrored[wrapped]
        return order[wrapped[self.rank :: self.world_size]], shifts, mirrored

    @property
    def _margin(self) -> int:
        images = self.part.images
        return (images.shape[-1] if isinstance(images, Tensor) else self.facts.input_size) // 8

    def _cut(self, images: Tensor, index: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        if not self.train or self.augment == "none":
            return images.index_select(0, index)
        if self.augment == "crop":
            mirrored = torch.zeros_like(mirrored)
        return shifted(images, index, shifts - self._margin, mirrored)


def _key(*numbers: int) -> int:
    """A seed of 63 bits that follows from some numbers."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Opening:
    """Opens the images of one part batch by batch, ahead of whoever asks for them.

    Args:
        part: images and labels.
        facts: preprocessing of the task.
        augment: of each image.
        workers: number of loading processes.
        pin_memory: whether batches lie where a GPU copies them from without waiting.
        again: whether several passes are made: the processes then stay.
    """

    def __init__(
        self, part: Part, facts: TaskFacts, augment: Augment, workers: int, pin_memory: bool, again: bool
    ) -> None:
        self.facts, self.requests = facts, _Requests()
        self.loader = DataLoader(
            _Opened(part, facts, augment),
            batch_sampler=self.requests,  # type: ignore[arg-type]  # any iterable of lists will do
            num_workers=workers,
            collate_fn=_Collated(facts),
            pin_memory=pin_memory,
            worker_init_fn=_ignore_interrupts,
            persistent_workers=again and workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
            # Torch draws a seed for the loading processes from it: nothing uses that, and nobody's numbers change.
            generator=torch.Generator(),
        )

    def batches(self, requests: list[list[Request]]) -> Iterator[tuple[Tensor, Tensor]]:
        self.requests.of_pass = requests
        if self.loader.num_workers:
            give_back_memory()
        try:
            for batch in self.loader:
                if isinstance(batch, BrokenImageError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"A loading process of task {self.facts.name!r} ended before its work was done ({error}). If memory "
                "ran out, lower data.num_workers (Python: num_workers) or the batch size; with 0 this process opens "
                "images itself, and shows what happens."
            ) from error


def give_back_memory() -> None:
    """Give memory that is freed back to the system, where the C library can (glibc); elsewhere nothing happens.

    Loading processes are forked with all pages of this process. Pages that are free here, and kept for later, would be
    copied as soon as they are used again: 700 MB after the groups of a ResNet-50 were found at 224 pixels.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(ctypes.c_size_t(0))


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C in a terminal reaches all processes; the one that trains decides when to stop, and its batch must come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Requests:
    """The batches of requests of the pass that is being made."""

    def __init__(self) -> None:
        self.of_pass: list[list[Request]] = []

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.of_pass)

    def __len__(self) -> int:
        return len(self.of_pass)


class _Opened(Dataset[Any]):
    """One image at a time, in the model's size, and its label; one that is broken comes as its error."""

    def __init__(self, part: Part, facts: TaskFacts, augment: Augment) -> None:
        self.part, self.facts, self.transform = part, facts, random_transform(augment, facts)

    def __getitem__(self, request: Request) -> tuple[Tensor, int] | BrokenImageError:
        index, down, right, mirror, seed = request
        try:
            image = self.part.open(index)
        except BrokenImageError as error:
            return error
        if self.transform is not None:
            with seeded(seed):
                return self.transform(image), int(self.part.labels[index])
        image = fitted(image, self.facts)
        if down or right or mirror:
            move = torch.tensor([[down, right]])
            image = shifted(image[None], torch.zeros(1, dtype=torch.int64), move, torch.tensor([mirror]))[0]
        return image, int(self.part.labels[index])


class _Collated:
    """A batch of opened images, normalised; or the error of one that is broken."""

    def __init__(self, facts: TaskFacts) -> None:
        self.facts = facts

    def __call__(self, opened: list[tuple[Tensor, int] | BrokenImageError]) -> Any:
        for each in opened:
            if isinstance(each, BrokenImageError):
                return each
        images = torch.stack([each[0].contiguous() for each in opened])  # type: ignore[index]
        if not images.is_floating_point():
            images = normalised(images, self.facts)
        return images, torch.tensor([each[1] for each in opened])  # type: ignore[index]


def shifted(images: Tensor, index: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Some images, each moved up and to the left, zeros where nothing is left, and then mirrored or not.

    Args:
        images: uint8 (N, C, H, W) on the CPU.
        index: int64 (B,), which of them.
        shifts: int64 (B, 2), by how many rows and columns, less than H and W; negative: down and to the right.
        mirrored: bool (B,).

    Returns:
        uint8 (B, C, H, W).

    Example:
        >>> images = torch.tensor([[[[1, 2, 3]]]], dtype=torch.uint8)
        >>> shifted(images, torch.tensor([0, 0]), torch.tensor([[0, 1], [0, 1]]), torch.tensor([False, True])).tolist()
        [[[[2, 3, 0]]], [[[0, 3, 2]]]]
    """
    source = images.numpy()
    height, width = source.shape[2:]
    cut = np.zeros((len(index), *source.shape[1:]), np.uint8)
    # One NumPy slice for each image is several times faster than indexing a torch tensor with a tensor of positions.
    for image, i, (dy, dx), mirror in zip(cut, index.tolist(), shifts.tolist(), mirrored.tolist(), strict=True):
        top, bottom = max(0, -dy), min(height, height - dy)
        left, right = max(0, -dx), min(width, width - dx)
        piece = source[i, :, top + dy : bottom + dy, left + dx : right + dx]
        if mirror:
            image[:, top:bottom, width - right : width - left] = piece[:, :, ::-1]
        else:
            image[:, top:bottom, left:right] = piece
    return torch.from_numpy(cut)


def check_loading(batch_size: int, augment: Augment, num_workers: Workers = "auto") -> None:
    """Refuse a batch size, an augmentation or a number of processes that no loader can serve, before any work."""
    if batch_size < 1:
        raise ValueError(f"Expected argument `batch_size` to be an int of at least 1, but got {batch_size}.")
    if num_workers != "auto" and (type(num_workers) is not int or num_workers < 0):
        raise ValueError(
            f"Expected argument `num_workers` to be 'auto' or an int of at least 0, but got {num_workers!r}."
        )
    require_augment(augment)
