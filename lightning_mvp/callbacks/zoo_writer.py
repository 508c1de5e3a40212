"""From a pruned model in a Trainer to an entry in a zoo."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.passes import Place
from lightning_mvp.backbones.small_head import small_head
from lightning_mvp.backbones.surgery import slice_state
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.zeros import require_zeroed
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.class_means import PROTOTYPE_IMAGES, means_of_features, prototypes_of
from lightning_mvp.voting.reading import read_sample
from lightning_mvp.zoo.new_entry import ZooTarget, entry_of


def class_prototypes(
    trainer: L.Trainer, backbone: nn.Module, theta0: Mapping[str, Tensor], classes: Sequence[str]
) -> Tensor | None:
    """Class means of θ⁰'s features on :data:`PROTOTYPE_IMAGES` training images, ``(classes, features)``.

    None, with a warning, where the Trainer's batches are not pairs of float images and class indices, a class is not
    among them, or the backbone can't take the loader's images, because the module changes them first.
    """
    datamodule = getattr(trainer, "datamodule", None)
    try:
        dense = copy.deepcopy(backbone).cpu().float()
        dense.load_state_dict(dict(theta0), strict=False)  # a classifier inside the backbone is not part of θ⁰
        if classifier_name(dense) is not None:
            dense.reset_classifier(0)  # type: ignore[operator]  # timm's
        if isinstance(datamodule, TaskDataModule):
            prototypes = prototypes_of(dense, datamodule, Place.of(trainer).alone)
        else:
            sample = read_sample(
                _pairs(trainer.train_dataloader or ()),
                first_images=PROTOTYPE_IMAGES,
                wanted=PROTOTYPE_IMAGES,
                classes=classes,
                argument="train_dataloaders",
            )
            images, labels = sample.images, sample.labels
            if not images.is_floating_point() or labels.ndim != 1:
                raise ValueError(f"expected float images with class indices, but got {images.dtype}, {labels.dtype}.")
            prototypes = means_of_features(dense, images, labels, len(classes))
        if prototypes is None:
            raise ValueError("not every class has an image among those read, or the features are not (N, D).")
        return prototypes
    except Exception as error:  # of any kind: no training is lost to what only helps to find its entry
        rank_zero_warn(f"The zoo entry has no prototypes, by which entries of a large zoo are found: {error}")
        return None


def _pairs(loader: Iterable[Any]) -> Iterator[Any]:
    for batch in loader:
        if isinstance(batch, (tuple, list)) and len(batch) > 2:  # which of them is the class?
            raise ValueError(f"expected batches of images and their classes, but got {len(batch)} parts.")
        yield batch


def write_entry_of_fit(
    target: ZooTarget,
    trainer: L.Trainer,
    pruner: Pruner,
    backbone: nn.Module,
    head: nn.Module | None,
    info: Mapping[str, Any],
) -> None:
    """Add the entry. A timm classifier inside the backbone is the head if ``head`` is not a linear layer.

    Raises:
        OSError: the zoo can't be written, or is gone; the entry is kept in the Trainer's ``default_root_dir``.
        ValueError: other weights than those that were pruned have been loaded.
    """
    require_zeroed(backbone, pruner.groups, pruner.masks)
    groups, theta0 = pruner.prunable.every, target.theta0
    masks, importance = pruner.prunable.of_all_groups(pruner.masks, pruner.importance)
    state = slice_state(backbone.state_dict(), groups, masks)
    inner = f"{classifier_name(backbone)}."
    small = {name.removeprefix(inner): tensor for name, tensor in state.items() if name.startswith(inner)}
    if isinstance(head, nn.Linear):
        small = small_head(head, groups, masks).state_dict()
    entry = entry_of(
        target.task,
        target.config,
        masks,
        importance,
        {name: tensor for name, tensor in state.items() if name in theta0},
        small,
        class_prototypes(trainer, backbone, theta0, target.task.classes),
        info,
        kept=pruner.kept,
        metrics=trainer.callback_metrics,
    )
    target.add(entry, Path(trainer.default_root_dir))
