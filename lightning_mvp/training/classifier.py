"""A backbone with a linear head on some data: how batches are read, the head is set, and accuracy is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.features import features_of
from lightning_mvp.backbones.passes import Place, Where, features_over, pass_over
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.tasks.datamodule import PartName
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.training.batches import AnyTask, BatchTo, count_right, images_of, pair_of, probabilities_of, task_of

HeadInit = Literal["ridge", "random"]


class Classifier(L.LightningModule):
    """What a :class:`~lightning_mvp.training.task.TaskModule` does with images besides training on them.

    Attributes:
        backbone: maps images to features.
        head: maps features to logits.
        facts: of the task.
        layout: the memory layout of its images.
        batch_to: batch → images and labels; None: a batch is these two.
    """

    backbone: nn.Module
    head: nn.Linear
    facts: TaskFacts
    layout: torch.memory_format
    batch_to: BatchTo | None
    _read_by: str | None  # the name of the function that was given as `batch_to`, here or before a checkpoint

    @property
    def multi_label(self) -> bool:
        """Whether labels are multi-hot."""
        return bool(self.hparams.get("multi_label", False))

    def _require_reader(self) -> None:
        if self.batch_to is None and self._read_by is not None:
            raise ValueError(
                f"Expected argument `batch_to`, because this module's batches were read by {self._read_by}, and a "
                "checkpoint does not hold functions, but got None. Give it again: load_from_checkpoint(…, batch_to=…)."
            )

    def pair_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Preprocessed images and labels of a batch."""
        self._require_reader()
        return pair_of(batch, self.facts, self.batch_to)

    def initialise_head(
        self,
        datamodule: AnyTask,
        head_init: HeadInit = "ridge",
        *,
        device: Where = None,
    ) -> None:
        """Set the head before the first step.

        Args:
            datamodule: the task.
            head_init: ``"ridge"``: in closed form on all training images; ``"random"``: as it is.
            device: where the images go through the backbone, such as ``"cuda"``, or a
                :class:`~lightning_mvp.backbones.passes.Place`, which also says the precision and whether ranks share
                the work. None: where the backbone is, in float32.
        """
        require_choice("head_init", head_init, HeadInit)
        if head_init == "ridge":
            batches = pass_over(self._task(datamodule), "train", device, self.facts)
            features, labels = features_over(self.backbone, batches, device)
            self.head.load_state_dict(ridge_head(features, labels, len(self.facts.classes), device).state_dict())

    def _task(self, datamodule: Any) -> Any:
        self._require_reader()
        return task_of(datamodule, self.facts, self.batch_to)

    def accuracy_of(self, batches: Iterable[Any], *, device: Where = None) -> float:
        """Accuracy in eval mode on batches, one of which is in memory at a time; of multi-hot labels each counts.

        Args:
            batches: as in training, such as ``datamodule.val_dataloader()``.
            device: as in :meth:`initialise_head`. Where ranks share the pass each gives batches of its own, and all get
                the accuracy on all of them.

        Raises:
            ValueError: there is no image.

        Example:
            >>> from lightning_mvp import TaskFacts, TaskModule
            >>> recipe = {"model": "resnet18", "arguments": {"num_classes": 0}, "input_size": 32, "in_chans": 3}
            >>> module = TaskModule(recipe, TaskFacts("pets", ("cat", "dog"), 32, (0.5,) * 3, (0.25,) * 3).to_dict())
            >>> batch = torch.zeros(4, 3, 32, 32), torch.tensor([0, 0, 0, 1])
            >>> module.accuracy_of([batch]) in (0.25, 0.75)
            True
        """
        return self._accuracy(map(self.pair_of, batches), device)

    def _accuracy(self, batches: Iterable[tuple[Tensor, Tensor]], device: Where) -> float:
        place, counts = Place.at(device), torch.zeros(2, dtype=torch.int64)
        with place.holding(self):
            for images, labels in batches:
                logits = self.head(place.run(self.backbone, images).to(self.head.weight))
                counts += torch.tensor(count_right(logits, labels))
        right, seen = place.summed(counts).tolist()
        if not seen:
            raise ValueError("Expected argument `batches` to give at least one image, but it gave none.")
        return float(torch.tensor(right, dtype=torch.float32) / seen)  # as accuracies were ever rounded

    def accuracy_in(self, datamodule: AnyTask, part: PartName = "val", *, device: Where = None) -> float:
        """Accuracy on a part of the task, ``"val"`` or ``"test"``; ``device`` as in :meth:`initialise_head`."""
        batches = pass_over(self._task(datamodule), part, device, self.facts)
        return self._accuracy(batches, device)

    def accuracy_on(self, images: Tensor, labels: Tensor) -> float:
        """Accuracy on raw images, in eval mode.

        Args:
            images: uint8 ``(N, C, H, W)``.
            labels: int64 ``(N,)`` in 0..classes-1.
        """
        features = features_of(self.backbone, preprocess(images, self.facts)).to(self.head.weight)
        with torch.no_grad():
            return (self.head(features).argmax(1).cpu() == labels.cpu()).float().mean().item()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self._require_reader()
        images = images_of(batch, self.facts, self.batch_to).contiguous(memory_format=self.layout)
        return probabilities_of(self(images), self.multi_label)


def name_of(function: BatchTo | None) -> str | None:
    """What a checkpoint calls the function that read its module's batches."""
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)
