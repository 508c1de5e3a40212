"""From a pruned model in a Trainer to an entry in a zoo."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

import lightning_mvp
from lightning_mvp.backbones.create import recipe_of
from lightning_mvp.backbones.features import classifier_name, features_of
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.surgery import slice_state
from lightning_mvp.callbacks.pruner import Pruner
from lightning_mvp.files import with_words
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.importance import Scores
from lightning_mvp.pruning.zeros import require_zeroed
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.reading import read_sample
from lightning_mvp.voting.recall import class_means
from lightning_mvp.zoo.entry import ZooEntry, entry_id
from lightning_mvp.zoo.entry_file import SUFFIX, Storage, write_entry
from lightning_mvp.zoo.rebuild import as_tensors
from lightning_mvp.zoo.zoo import ModelZoo

PROTOTYPE_IMAGES = 500


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """As NumPy arrays; floating-point numbers as float32, whatever precision was trained in."""
    return {name: as_stored(tensor).contiguous().numpy() for name, tensor in tensors.items()}


def as_stored(tensor: Tensor) -> Tensor:
    """A copy as a zoo keeps it: on the CPU, floating-point numbers as float32."""
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None, copy=True)


def own_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's state without the timm classifier that may sit inside it: what θ⁰ is made of."""
    classifier = classifier_name(backbone)
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        # What a module's get_extra_state gives may be anything; it is the module's own business.
        if isinstance(tensor, Tensor) and (classifier is None or not name.startswith(f"{classifier}."))
    }


def require_new_entry(path: Path, task: TaskFacts, config: Mapping[str, Any]) -> None:
    """Refuse an entry that the zoo has already, before any work.

    Raises:
        FileExistsError: the same task was pruned with the same configuration.
    """
    entry = entry_id(task.name, config)
    if (path / "zoo.json").exists() and entry in ModelZoo(path):
        raise FileExistsError(
            f"The zoo {path} already has an entry {entry}: the same task pruned with the same configuration. "
            "Nothing is overwritten; remove it with `mvp-zoo remove`, or change `seed`."
        )


def small_head(head: nn.Linear, groups: Groups, masks: Masks) -> nn.Linear:
    """The head of the small backbone: the columns of the features that are left, on the CPU."""
    kept = torch.as_tensor(groups.kept_features(masks, head.in_features))
    small = nn.Linear(len(kept), head.out_features, bias=head.bias is not None, dtype=head.weight.dtype)
    with torch.no_grad():
        small.weight.copy_(head.weight.detach().cpu()[:, kept])
        if head.bias is not None:
            small.bias.copy_(head.bias.detach().cpu())
    return small


def open_zoo(path: Path, backbone: nn.Module, theta0: Mapping[str, Tensor], groups: Groups) -> ModelZoo:
    """Create the zoo, or refuse one whose backbone, θ⁰ or groups are others."""
    recipe = recipe_of(backbone)
    if recipe is None:
        rank_zero_warn(
            "This backbone can't be rebuilt from a timm name, so whoever votes from the zoo must pass it: "
            "voted_backbone(..., backbone=...). Backbones made by lightning_mvp.create_backbone carry their recipe."
        )
    elif classifier_name(backbone) is not None:  # no part of θ⁰: tasks of different class counts share a zoo
        recipe = {**recipe, "arguments": {**recipe.get("arguments", {}), "num_classes": 0}}
    return ModelZoo.create(path, recipe, _arrays(theta0), groups.sizes)


def class_prototypes(
    trainer: L.Trainer, backbone: nn.Module, theta0: Mapping[str, Tensor], classes: Sequence[str]
) -> Tensor | None:
    """Class means of θ⁰'s features on :data:`PROTOTYPE_IMAGES` training images, ``(classes, features)``.

    None, with a warning, where the Trainer's batches are not pairs of float images and class indices, a class is not
    among them, or the backbone can't take the loader's images, because the module changes them first.
    """
    datamodule = getattr(trainer, "datamodule", None)
    try:
        if isinstance(datamodule, TaskDataModule):
            images, labels = prototype_images(datamodule)
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
        dense = copy.deepcopy(backbone).cpu().float()
        dense.load_state_dict(dict(theta0), strict=False)  # a classifier inside the backbone is not part of θ⁰
        if classifier_name(dense) is not None:
            dense.reset_classifier(0)  # type: ignore[operator]  # timm's
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


def prototype_images(data: TaskDataModule) -> tuple[Tensor, Tensor]:
    """Images of a task for its prototypes, preprocessed, and their labels."""
    images, labels = data.scoring_images(max(PROTOTYPE_IMAGES, len(data.facts.classes)))
    return preprocess(images, data.facts), labels


def means_of_features(dense: nn.Module, images: Tensor, labels: Tensor, n_classes: int) -> Tensor | None:
    """Class means of features, ``(classes, features)``, on the CPU; None where a class has no image.

    Args:
        dense: maps images to features.
        images: preprocessed, ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        n_classes: how many there are.
    """
    features, labels = features_of(dense, images.cpu()), labels.cpu()
    if features.ndim != 2 or set(labels.tolist()) != set(range(n_classes)):
        return None
    return class_means(features, labels)


def on_rank_zero(trainer: L.Trainer | L.Fabric, write: Callable[[], object]) -> None:
    """Let rank 0 write; all ranks wait for it, and all fail if it does.

    Raises:
        RuntimeError: on all ranks, with what went wrong on rank 0.
    """
    problem = None
    if trainer.is_global_zero:
        try:
            write()
        except Exception as error:
            if trainer.world_size == 1:
                raise
            problem = f"{type(error).__name__}: {error}"
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise RuntimeError(f"The zoo entry could not be written, and the zoo is as it was. {problem}")


def add_or_keep(zoo: ModelZoo, entry: ZooEntry, folder: Path, storage: Storage = "float32") -> None:
    """Add an entry; where the zoo can't be written, keep it in ``folder``, because it took a training to make.

    The same work done twice is allowed: if another job has added such an entry meanwhile, that one stays.

    Raises:
        OSError, ValueError: the entry is not in the zoo, or may be lost there; the message says where it is kept.
    """
    try:
        zoo.add(entry, storage=storage)
    except FileExistsError:
        rank_zero_warn(f"Another job has added {entry.name} to the zoo {zoo.path} meanwhile: its entry stays.")
    except (OSError, ValueError) as error:
        try:
            entry = replace(entry, info={**entry.info, "zoo": zoo.fingerprint})  # whose it is
            kept = write_entry(folder / f"{entry.name}{SUFFIX}", entry, overwrite=True, storage=storage)
        except (OSError, ValueError):  # nowhere to write, or nothing to keep: the first error is the one to mend
            raise error from None
        words = (
            f"The pruned model is kept in {kept}: `mvp-zoo add {zoo.path} {kept}` adds it once the zoo can be written."
        )
        if isinstance(error, OSError):
            raise with_words(error, f"{error.strerror or error} {words}") from error
        raise ValueError(f"{error} {words}") from error


def entry_of(
    task: TaskFacts,
    config: Mapping[str, Any],
    masks: Masks,
    importance: Scores,
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    prototypes: Tensor | None,
    info: Mapping[str, Any],
    *,
    kept: Mapping[str, float],
    metrics: Mapping[str, Any],
) -> ZooEntry:
    """A pruned model as a zoo keeps it, however it was pruned. Pure.

    Args:
        task: what it was pruned for.
        config: how; with the task's name it makes the entry's id.
        masks: ``(units,)`` for each of the backbone's groups.
        importance: likewise.
        state: of the small backbone: the weights that θ⁰ has, too.
        head: ``weight`` and perhaps ``bias`` of the small head; empty if there is none.
        prototypes: ``(classes, features)``, if known.
        info: what the run came to, plain JSON.
        kept: fractions of units, parameters and MACs that are left.
        metrics: what was measured in training.
    """
    return ZooEntry(
        name=entry_id(task.name, config),
        facts=task.to_dict(),
        config=dict(config),
        masks=_arrays(masks),
        weights=_arrays(state),
        importance=_arrays(importance),
        head=_arrays(head),
        prototypes=None if prototypes is None else prototypes.numpy(),
        info={
            **info,
            "kept": dict(kept),
            "metrics": {name: float(value) for name, value in metrics.items()},
            "versions": {
                "lightning_mvp": lightning_mvp.__version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
        },
    )


class ZooTarget:
    """The zoo that a pruned model is to be added to, and what the entry is about.

    Args:
        path: the zoo's folder; made if there is none.
        task: what the model is pruned for.
        storage: ``"float32"``, or ``"bfloat16"`` for half the bytes; no part of the entry's id.

    Raises:
        ValueError: another storage.
    """

    def __init__(self, path: Path, task: TaskFacts, storage: Storage = "float32") -> None:
        require_choice("storage", storage, Storage)
        self.path, self.task, self.storage = path, task, storage
        self.config: dict[str, Any] = {}
        self.decided = False  # somebody has looked already whether the zoo has such an entry
        self.forget()

    def forget(self) -> None:
        """A new fit begins: θ⁰ is not known yet, and the zoo is not open."""
        self._zoo: ModelZoo | None = None
        self._theta0: dict[str, Tensor] | None = None
        self._saved: str | None = None

    @property
    def theta0_fingerprint(self) -> str | None:
        """What a checkpoint says of θ⁰, which the zoo holds."""
        return self._saved if self._zoo is None else self._zoo.theta0_fingerprint

    def capture(self, backbone: nn.Module) -> None:
        """Take the backbone as it is now for θ⁰."""
        self._theta0 = {name: as_stored(tensor) for name, tensor in own_state(backbone).items()}

    def resume(self, saved: str | Mapping[str, Tensor] | None) -> None:
        """θ⁰ of a run that goes on: what was captured if it has this fingerprint, else the zoo's.

        Args:
            saved: θ⁰'s fingerprint as the checkpoint has it; older checkpoints hold θ⁰ itself.

        Raises:
            ValueError: the checkpoint says nothing of θ⁰, or there is no zoo with that θ⁰ here.
        """
        if isinstance(saved, Mapping):
            self._theta0 = dict(saved)
            return
        if saved is None:
            raise ValueError(
                "Expected a checkpoint of a run with `zoo`, but it was written without one, so it doesn't say which "
                "weights the run began with. Resume without `zoo`, or start anew."
            )
        self._saved = saved
        if self._theta0 is not None and fingerprint(self._theta0) == saved:
            return
        zoo = ModelZoo(self.path) if (self.path / "zoo.json").exists() else None
        if zoo is None or zoo.theta0_fingerprint != saved:
            raise ValueError(
                "Expected argument `zoo` to be the zoo of the run that is resumed, from which it takes its θ⁰, but "
                + (f"there is none at {self.path}." if zoo is None else f"{self.path} is of another θ⁰.")
                + f" Name that zoo, or start with a backbone of those weights (fingerprint {saved[:8]}…)."
            )
        self._theta0 = as_tensors(zoo.theta0())

    def reserve(self, config: Mapping[str, Any]) -> None:
        """Refuse an entry that the zoo has already, before any work; nothing is written.

        Raises:
            FileExistsError: the same task was pruned with the same configuration.
        """
        self.config = dict(config)
        if not self.decided:
            require_new_entry(self.path, self.task, self.config)

    def open(self, backbone: nn.Module, groups: Groups) -> None:
        """Create the zoo, or refuse one whose backbone, θ⁰ or groups are others."""
        self._zoo = open_zoo(self.path, backbone, self.theta0, groups)
        self._theta0 = as_tensors(self._zoo.theta0())  # which is in memory anyway

    @property
    def theta0(self) -> dict[str, Tensor]:
        """The weights that the run began with."""
        assert self._theta0 is not None, "it was captured, or found by its fingerprint"
        return self._theta0

    def write(
        self,
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
        groups, theta0, (masks, importance) = pruner.all_groups, self.theta0, pruner.for_zoo()
        state = slice_state(backbone.state_dict(), groups, masks)
        inner = f"{classifier_name(backbone)}."
        small = {name.removeprefix(inner): tensor for name, tensor in state.items() if name.startswith(inner)}
        if isinstance(head, nn.Linear):
            small = small_head(head, groups, masks).state_dict()
        entry = entry_of(
            self.task,
            self.config,
            masks,
            importance,
            {name: tensor for name, tensor in state.items() if name in theta0},
            small,
            class_prototypes(trainer, backbone, theta0, self.task.classes),
            info,
            kept=pruner.kept,
            metrics=trainer.callback_metrics,
        )
        self.add(entry, Path(trainer.default_root_dir))

    def add(self, entry: ZooEntry, folder: Path) -> None:
        """Add an entry, or keep it in ``folder``: :func:`add_or_keep`."""
        assert self._zoo is not None, "it was opened before the first step"
        add_or_keep(self._zoo, entry, folder, self.storage)
