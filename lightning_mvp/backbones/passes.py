"""Images through a model that is not trained: one batch in memory, on any device, shared between ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import lightning as L
import torch
from torch import Tensor, distributed, nn

from lightning_mvp.backbones.features import as_taken, evaluating, reestimate_batch_norm
from lightning_mvp.tasks.datamodule import PartName, TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.partition import Part

# Of all images of a batch on a CPU: 256 of 64 × 64, 20 of 224 × 224. A GPU is not busy with so few.
PIXELS = 2**20
PIXELS_ON_A_GPU = 2**22
MOST_IMAGES = 256
# What a Trainer's precision means without gradients. Any other one is that of the model's weights.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where and how images go through a model.

    Args:
        device: the model is taken there for the pass, and back afterwards. None: where it is.
        precision: as the Trainer's: with ``"bf16-mixed"`` and ``"16-mixed"`` the pass is made under autocast.
        shared: whether the ranks of the process group share the pass: all of them must make it, each sees a part of the
            images, and all get one result.

    Example:
        >>> Place("cpu").rank, Place.at(None)
        (0, Place(device=None, precision='32-true', shared=False))
    """

    device: torch.device | str | None = None
    precision: str = "32-true"
    shared: bool = False

    @classmethod
    def at(cls, where: Where) -> Place:
        """Any of the forms in which an argument ``device`` may be given."""
        return where if isinstance(where, Place) else cls(where)

    @classmethod
    def of(cls, trainer: L.Trainer | L.Fabric) -> Place:
        """The device and precision of a Trainer; shared by its ranks once they can talk to each other."""
        strategy: Any = trainer.strategy
        plugin = trainer.precision_plugin if isinstance(trainer, L.Trainer) else strategy.precision
        together = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
        return cls(strategy.root_device, str(plugin.precision), together)

    @property
    def alone(self) -> Place:
        """The same place for one process without the others."""
        return Place(self.device, self.precision)

    @property
    def rank(self) -> int:
        """Of this process among those that share the pass."""
        return distributed.get_rank() if self.shared else 0

    @property
    def ranks(self) -> int:
        """The number of processes that share the pass."""
        return distributed.get_world_size() if self.shared else 1

    @contextmanager
    def holding(self, *modules: nn.Module) -> Iterator[None]:
        """Modules at this place, in eval mode and without gradients; they are where and as they were afterwards."""
        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.to, _device_of(module))
                if self.device is not None:
                    module.to(self.device)
            stack.enter_context(evaluating(*modules))
            yield

    def autocast(self, model: nn.Module) -> torch.autocast:
        """The precision of a forward pass of a model that is here."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(_device_of(model).type, dtype, enabled=dtype is not None)

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        """What a model makes of preprocessed images in this precision, float32 where the model is."""
        with self.autocast(model):
            return model(as_taken(images, model)).float()

    @property
    def exact(self) -> Place:
        """Where float64 sums are made: the same device, or the CPU if that knows no float64; in full precision."""
        knows = self.device is None or torch.device(self.device).type != "mps"
        return Place(self.device if knows else "cpu", shared=self.shared)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, where the tensor is and the same on all; the tensor itself, if nothing is shared."""
        if not self.shared:
            return tensor
        total = tensor.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(tensor.device)

    def agreed(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on all ranks."""
        if not self.shared:
            return tensor
        own = tensor.to(self.device, copy=True).contiguous()
        distributed.broadcast(own, 0)
        return own.to(tensor.device)


Where: TypeAlias = "Place | torch.device | str | None"


def images_a_batch(size: int, device: torch.device | str | None = None) -> int:
    """The number of images of a batch, such that memory does not depend on their size in pixels.

    Example:
        >>> images_a_batch(32), images_a_batch(224), images_a_batch(224, "cuda")
        (256, 20, 83)
    """
    on_cpu = device is None or torch.device(device).type == "cpu"
    return max(1, min(MOST_IMAGES, (PIXELS if on_cpu else PIXELS_ON_A_GPU) // size**2))


def pass_over(
    data: TaskDataModule, part: Part | PartName, where: Where = None, facts: TaskFacts | None = None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of preprocessed images and labels of a task, in order: of several ranks each has a slice.

    Args:
        data: the task.
        part: which images; a name, or some of those.
        where: who makes the pass.
        facts: of the model that will see the images; None: the task's own.
    """
    place = Place.at(where)
    if not isinstance(part, str):
        chosen = part
    elif hasattr(data, "batches"):  # of any LightningDataModule
        return data.batches(part)
    else:
        chosen = data.part(part)
    if place.ranks > 1:
        chosen = chosen[torch.arange(place.rank, len(chosen), place.ranks)]
        if not len(chosen):
            return []
    size = (data.facts if facts is None else facts).input_size
    return data.pass_loader(chosen, facts, images_a_batch(size, place.device))


def sample_of(data: Any, most: int, where: Where = None) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of at most so many preprocessed training images, equally many of each class where that is known."""
    if hasattr(data, "batches"):
        return data.batches("train", most)
    return pass_over(data, data.scoring_part(max(most, len(data.facts.classes))), where)


def features_over(
    backbone: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], where: Where = None
) -> tuple[Tensor, Tensor]:
    """Penultimate features in eval mode, with labels: of this rank's images, where ranks share the pass.

    Args:
        backbone: maps images to features.
        batches: preprocessed images ``(N, C, H, W)`` and labels; one batch is in memory at a time.
        where: the device to run on, or a :class:`Place`.

    Returns:
        ``(n, D)`` float32 and the labels ``(n,)`` or ``(n, L)``, on the CPU; of no batches ``(0, 0)`` and ``(0,)``.
    """
    place, features, labels = Place.at(where), [torch.empty(0, 0)], [torch.empty(0, dtype=torch.int64)]
    with place.holding(backbone):
        for images, own in batches:
            features.append(place.run(backbone, images).cpu())
            labels.append(own.cpu())
    several = slice(1, None) if len(features) > 1 else slice(None)
    return torch.cat(features[several]), torch.cat(labels[several])


def reestimate_over(backbone: nn.Module, batches: Iterable[Tensor], where: Where = None) -> None:
    """:func:`~lightning_mvp.backbones.features.reestimate_batch_norm` at a place, by one process."""
    place = Place.at(where)
    with place.holding(backbone), place.autocast(backbone):
        reestimate_batch_norm(backbone, batches)


def _device_of(model: Any) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device
