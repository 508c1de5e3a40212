"""What a batch is to a module that learns a task: images and labels, of one class or of several at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import lightning as L
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from lightning_mvp.tasks.datamodule import PartName, TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.reading import MOST_BATCHES, iterated

BatchTo: TypeAlias = Callable[[Any], Any]


class LoadedTask:
    """The task of any LightningDataModule: what votes, heads and accuracies need of its loaders, batch by batch.

    Iterating gives its training batches as they are, but for ``batch_to``.

    Args:
        datamodule: it is prepared and set up for ``"fit"``, unless a Trainer has done so.
        facts: classes and preprocessing.
        batch_to: batch → images and labels.
    """

    def __init__(self, datamodule: L.LightningDataModule, facts: TaskFacts, batch_to: BatchTo | None = None) -> None:
        if datamodule.trainer is None:
            datamodule.prepare_data()
            datamodule.setup("fit")
        self.datamodule, self.facts, self.batch_to = datamodule, facts, batch_to

    def __iter__(self) -> Iterator[Any]:
        return (converted(batch, self.batch_to) for batch in iterated(self.datamodule.train_dataloader(), "datamodule"))

    def batches(self, part: PartName, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed batches of one pass over a part; of a loader that has no length :data:`MOST_BATCHES`.

        Args:
            part: ``"train"``, ``"val"`` or ``"test"``.
            most: so many images at most.
        """
        given = getattr(self.datamodule, f"{part}_dataloader")()
        seen = 0
        batches = list | tuple | Mapping | Tensor
        several = isinstance(given, list | tuple) and not any(isinstance(each, batches) for each in given)
        for loader in given if several else [given]:
            for batch in itertools.islice(loader, None if isinstance(loader, Sized) else MOST_BATCHES):
                images, labels = pair_of(batch, self.facts, self.batch_to)
                left = len(images) if most is None else most - seen
                yield images[:left], labels[:left]
                seen += len(images)
                if most is not None and seen >= most:
                    return


AnyTask: TypeAlias = TaskDataModule | L.LightningDataModule | LoadedTask


def task_of(datamodule: Any, facts: TaskFacts, batch_to: BatchTo | None) -> TaskDataModule | LoadedTask:
    """A task whose images passes may go over, whoever made the datamodule."""
    if isinstance(datamodule, L.LightningDataModule) and not hasattr(datamodule, "pass_loader"):
        return LoadedTask(datamodule, facts, batch_to)
    return datamodule


def facts_for(datamodule: Any, facts: TaskFacts | Mapping[str, Any] | None, batch_to: BatchTo | None) -> TaskFacts:
    """The facts of a task: those that are given, else the datamodule's own.

    Raises:
        ValueError: there are none; or they, or ``batch_to``, are given with a `TaskDataModule`, which has its own.
    """
    own = getattr(datamodule, "facts", None)
    if hasattr(datamodule, "pass_loader"):
        for argument, value in (("facts", facts), ("batch_to", batch_to)):
            if value is not None:
                raise ValueError(
                    f"Expected argument `{argument}` to be None with a TaskDataModule, which knows its own, but got "
                    f"{value!r}. Leave it out."
                )
    found = own if facts is None else facts
    if isinstance(found, Mapping):
        found = TaskFacts.from_dict(found)
    if not isinstance(found, TaskFacts):
        raise ValueError(
            f"Expected argument `facts` to say the classes and the preprocessing of {type(datamodule).__name__}, which "
            f"has no `facts` of its own, but got {facts!r}. Give TaskFacts(name, classes, input_size, mean, std)."
        )
    return found


def converted(batch: Any, batch_to: BatchTo | None) -> Any:
    """What a batch is taken for."""
    return batch if batch_to is None else batch_to(batch)


def pair_of(batch: Any, facts: TaskFacts, batch_to: BatchTo | None) -> tuple[Tensor, Tensor]:
    """Images as the task's model sees them, and labels.

    Args:
        batch: of a loader.
        facts: of the task: uint8 images are preprocessed by them, float ones are taken as they are.
        batch_to: batch → images and labels; None: it is these two.

    Raises:
        ValueError: it is no such pair, or its labels don't fit the classes.
    """
    found = converted(batch, batch_to)
    if not isinstance(found, Sequence) or len(found) < 2 or not all(isinstance(part, Tensor) for part in found[:2]):
        raise ValueError(
            f"Expected {'a batch' if batch_to is None else '`batch_to` to give'} (images, labels) as tensors, but got "
            f"{_kind(found)}. Give batch_to=…, such as lambda batch: (batch['image'], batch['label'])."
        )
    images, labels = found[:2]
    if labels.ndim == 2 and labels.shape[1] != len(facts.classes):
        raise ValueError(
            f"Expected labels to be class indices (n,), or multi-hot (n, {len(facts.classes)}) as task {facts.name!r} "
            f"has {len(facts.classes)} classes, but got {tuple(labels.shape)}."
        )
    return _seen(images, facts), labels


def images_of(batch: Any, facts: TaskFacts, batch_to: BatchTo | None) -> Tensor:
    """The images of a batch that may have no labels, to predict these."""
    found = converted(batch, batch_to)
    images = found[0] if isinstance(found, Sequence) and len(found) else found
    if not isinstance(images, Tensor):
        raise ValueError(
            f"Expected a batch of images, alone or before their labels, but got {_kind(found)}. Give batch_to=…, such "
            "as lambda batch: (batch['image'], None)."
        )
    return _seen(images, facts)


def loss_of(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy; with several labels binary cross-entropy, the mean over images and labels.

    Args:
        logits: ``(N, classes)``.
        labels: class indices ``(N,)``; shares of classes ``(N, classes)``, as of mixed images; or multi-hot.
        multi_label: whether they are multi-hot.
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


def probabilities_of(logits: Tensor, multi_label: bool) -> Tensor:
    """float32 ``(N, classes)``: each row sums to 1, or with several labels each number is one label's probability."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(1)


def count_right(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many labels are right, of how many; of multi-hot labels each counts."""
    labels = labels.to(logits.device)
    right = (logits > 0) == (labels > 0.5) if labels.ndim == 2 else logits.argmax(1) == labels
    return int(right.sum()), right.numel()


def accuracies(classes: int, multi_label: bool) -> nn.ModuleDict:
    """A metric for each stage that takes logits and labels."""

    def metric() -> Metric:
        if multi_label:
            return MultilabelAccuracy(classes, average="micro")
        return MulticlassAccuracy(classes, average="micro")

    return nn.ModuleDict({f"{stage}_stage": metric() for stage in ("train", "val", "test")})


def _seen(images: Tensor, facts: TaskFacts) -> Tensor:
    return images if images.is_floating_point() else preprocess(images, facts)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with keys {list(value)}"
    inside = f" of {', '.join(type(part).__name__ for part in value)}" if isinstance(value, list | tuple) else ""
    return f"a {type(value).__name__}{inside}"
