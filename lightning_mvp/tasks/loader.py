"""Batches that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.partition import Part
from lightning_mvp.tasks.preprocessing import preprocess

AUGMENTATIONS = ("none", "crop", "crop_flip")


class TaskLoader:
    """Batches of one part: cut and augmented from a uint8 tensor in one copy, preprocessed by `facts`.

    The order and the augmentation of image i in epoch e are functions of (seed, e, i): they change neither with the
    batch size nor with the number of processes. A full pass moves on to the next epoch; Lightning says which epoch it
    is by `sampler.set_epoch`. A last training batch of one image joins the batch before it (batch norm needs two).
    A checkpoint taken while training resumes with exactly the next batch; one taken after `fit` stopped inside an epoch
    begins a new epoch, because Lightning counts the stopped one as done.
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
        check_loading(batch_size, augment)
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
            # The position moves before the batch is handed out: a checkpoint that is taken while the model trains on
            # this batch must point to the next one.
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
            index = order[starts[position] : starts[position + 1]]
            images = self._cut(index, shifts[index], mirrored[index])
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

    def _cut(self, index: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        if not self.train or self.augment == "none":
            return self.part.images.index_select(0, index)
        if self.augment == "crop":
            mirrored = torch.zeros_like(mirrored)
        return shifted(self.part.images, index, shifts - self._margin, mirrored)


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


def check_loading(batch_size: int, augment: str) -> None:
    """Refuse a batch size or an augmentation that no loader can serve, before any work."""
    if batch_size < 1:
        raise ValueError(f"Expected argument `batch_size` to be an int of at least 1, but got {batch_size}.")
    if augment not in AUGMENTATIONS:
        raise ValueError(f"Expected argument `augment` to be one of {AUGMENTATIONS}, but got {augment!r}.")
