"""From a pruned model to a new entry of a zoo, however the model was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_mvp.agreement import on_rank_zero
from lightning_mvp.backbones.create import recipe_of
from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.files import with_words
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.importance import Scores
from lightning_mvp.pruning.prunable import Contract
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.version import __version__
from lightning_mvp.words import counted
from lightning_mvp.zoo.entry import ZooEntry, entry_id
from lightning_mvp.zoo.entry_file import SUFFIX, Storage, write_entry
from lightning_mvp.zoo.index import INDEX
from lightning_mvp.zoo.rebuild import as_tensors
from lightning_mvp.zoo.seen_by import as_seen_by, preprocessing_of
from lightning_mvp.zoo.zoo import ModelZoo

# For what a callback refuses; whoever calls a command or a function has other arguments.
REPLACE = (
    "MVPCallback(overwrite=True) replaces it when the fit has ended, and training={'what': 'is new'} makes another one "
    "beside it. "
)


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
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


def require_new_entry(path: Path, task: TaskFacts, config: Mapping[str, Any], remedy: str = REPLACE) -> None:
    """Refuse an entry that the zoo has already, before any work.

    Args:
        path: the zoo's folder.
        task: of the entry.
        config: of the entry.
        remedy: what the caller can do besides removing the entry or changing ``seed``; it ends with a space.

    Raises:
        FileExistsError: the same task was pruned with the same configuration, which the message tells.
    """
    entry = entry_id(task.name, config)
    if (path / INDEX).exists() and entry in ModelZoo(path):
        raise FileExistsError(
            f"The zoo {path} already has an entry {entry}: of the same task {task.name!r}, made with the same "
            f"{_told(config)}. An id knows nothing else, such as code or data. {remedy}`mvp-zoo remove {path} "
            f"{entry}` removes it, and another `seed` makes another entry."
        )


def _told(config: Mapping[str, Any]) -> str:
    """Settings in a line, without those that say nothing."""
    pairs = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    for name, value in config.items():
        pairs |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {}
    return ", ".join(f"{name}={value}" for name, value in pairs.items() if value is not None)


def open_zoo(
    path: Path, backbone: nn.Module, theta0: Mapping[str, Tensor], groups: Groups, task: TaskFacts
) -> ModelZoo:
    """Create the zoo, with the preprocessing of this task, or refuse one whose backbone, θ⁰ or groups are others."""
    recipe = recipe_of(backbone)
    if recipe is None and not (path / INDEX).exists():
        rank_zero_warn(
            f"No name of timm's says how to build this {type(backbone).__name__}, so the zoo {path} can't: whoever "
            "uses its entries gives the same dense backbone, in Python by voted_backbone(..., backbone=...), with "
            "mvp-vote and mvp-export by backbone.target=package.module:function, a function that makes it. Backbones "
            "of lightning_mvp.create_backbone carry their recipe."
        )
    elif recipe is not None and classifier_name(backbone) is not None:
        # It is no part of θ⁰: tasks of different class counts share a zoo.
        recipe = {**recipe, "arguments": {**recipe.get("arguments", {}), "num_classes": 0}}
    return ModelZoo.create(
        path,
        recipe,
        {name: tensor.numpy() for name, tensor in theta0.items()},
        groups.sizes,
        preprocessing_of(task.to_dict()),
    )


def add_or_keep(
    zoo: ModelZoo, entry: ZooEntry, folder: Path, storage: Storage = "float32", overwrite: bool = False
) -> bool:
    """Add an entry; where the zoo can't be written, keep it in ``folder``, because it took a training to make.

    The same work done twice is allowed: if another job has added such an entry meanwhile, that one stays, unless
    ``overwrite`` is true.

    Returns:
        Whether it is this entry that the zoo has now.

    Raises:
        OSError, ValueError: the entry is not in the zoo, or may be lost there; the message says where it is kept.
    """
    try:
        zoo.add(entry, overwrite, storage)
    except FileExistsError:
        rank_zero_warn(f"Another job has added {entry.name} to the zoo {zoo.path} meanwhile: its entry stays.")
        return False
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
    return True


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
    seen_by: TaskFacts | None = None,
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
        seen_by: the facts by which images were preprocessed for the prototypes; None: those of the task.
    """
    own, other = (preprocessing_of(facts.to_dict()) for facts in (task, seen_by or task))
    return ZooEntry(
        name=entry_id(task.name, config),
        facts=task.to_dict(),
        config=dict(config),
        masks=as_arrays(masks),
        weights=as_arrays(state),
        importance=as_arrays(importance),
        head=as_arrays(head),
        prototypes=None if prototypes is None else prototypes.numpy(),
        info={
            **info,
            "kept": dict(kept),
            "metrics": {name: float(value) for name, value in metrics.items()},
            "versions": {
                "lightning_mvp": __version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
        },
        prototypes_seen_by=None if prototypes is None or other == own else other,
    )


class ZooTarget:
    """The zoo that a pruned model is to be added to, and what the entry is about.

    Where several ranks train, rank 0 alone looks at the zoo and decides, and only rank 0 holds θ⁰, once: what was
    captured, then what the zoo has read. The others wait for it, and keep θ⁰'s fingerprint.

    Args:
        path: the zoo's folder; made if there is none.
        task: what the model is pruned for.
        storage: ``"float32"``, or ``"bfloat16"`` for half the bytes; no part of the entry's id.
        overwrite: whether an entry that is there is replaced.

    Raises:
        ValueError: another storage.
    """

    def __init__(self, path: Path, task: TaskFacts, storage: Storage = "float32", overwrite: bool = False) -> None:
        require_choice("storage", storage, Storage)
        self.path, self.task, self.storage, self.overwrite = path, task, storage, overwrite
        self.config: dict[str, Any] = {}
        self.decided = False  # somebody has looked already whether the zoo has such an entry
        self.forget()

    def forget(self) -> None:
        """A new fit begins: θ⁰ is not known yet, and the zoo is not open."""
        self._zoo: ModelZoo | None = None
        self._theta0: dict[str, Tensor] | None = None
        self.theta0_fingerprint: str | None = None  # what a checkpoint says of θ⁰, which the zoo holds

    def contract(self, trainer: L.Trainer | L.Fabric) -> Contract | None:
        """The groups of the zoo; None where it has yet to be made."""
        return on_rank_zero(trainer, self._contract)

    def _contract(self) -> Contract | None:
        return Contract(str(self.path), ModelZoo(self.path).group_sizes) if (self.path / INDEX).exists() else None

    def prototype_facts(self) -> TaskFacts:
        """How the task's images are seen for prototypes: by the zoo's preprocessing, if there is one, or its own.

        Only rank 0 knows.
        """
        zoo = ModelZoo(self.path) if self._zoo is None and (self.path / INDEX).exists() else self._zoo
        return as_seen_by(self.task, None if zoo is None else zoo.preprocessing)

    def capture(self, trainer: L.Trainer | L.Fabric, backbone: nn.Module) -> None:
        """Take the backbone as it is now for θ⁰."""
        self._theta0 = None  # at no time twice
        if trainer.is_global_zero:
            self._theta0 = {name: as_stored(tensor) for name, tensor in own_state(backbone).items()}

    def resume(self, trainer: L.Trainer, saved: str | Mapping[str, Tensor] | None) -> None:
        """θ⁰ of a run that goes on: what was captured if it has this fingerprint, else the zoo's.

        Args:
            trainer: the ranks.
            saved: θ⁰'s fingerprint as the checkpoint has it; older checkpoints hold θ⁰ itself.

        Raises:
            ValueError: the checkpoint says nothing of θ⁰, or there is no zoo with that θ⁰ here.
        """
        if saved is None:
            raise ValueError(
                "Expected a checkpoint of a run with `zoo`, but it was written without one, so it doesn't say which "
                "weights the run began with. Resume without `zoo`, or start anew."
            )
        if isinstance(saved, str):
            self.theta0_fingerprint = saved
            on_rank_zero(trainer, lambda: self._find(saved))
        elif trainer.is_global_zero:
            self._theta0 = dict(saved)

    def _find(self, saved: str) -> None:
        if self._theta0 is not None and fingerprint(self._theta0) == saved:
            return
        zoo = ModelZoo(self.path) if (self.path / INDEX).exists() else None
        if zoo is None or zoo.theta0_fingerprint != saved:
            raise ValueError(
                "Expected argument `zoo` to be the zoo of the run that is resumed, from which it takes its θ⁰, but "
                + (f"there is none at {self.path}." if zoo is None else f"{self.path} is of another θ⁰.")
                + f" Name that zoo, or start with a backbone of those weights (fingerprint {saved[:8]}…)."
            )
        self._theta0 = as_tensors(zoo.theta0())

    def reserve(self, trainer: L.Trainer | L.Fabric, config: Mapping[str, Any]) -> None:
        """Refuse an entry that the zoo has already, before any work; nothing is written.

        Raises:
            FileExistsError: the same task was pruned with the same configuration.
        """
        self.config = dict(config)
        if not self.decided and not self.overwrite:
            on_rank_zero(trainer, lambda: require_new_entry(self.path, self.task, self.config))

    def open(self, trainer: L.Trainer | L.Fabric, backbone: nn.Module, groups: Groups) -> None:
        """Create the zoo, or refuse one whose backbone, θ⁰ or groups are others."""
        self.theta0_fingerprint = on_rank_zero(trainer, lambda: self._open(backbone, groups))

    def _open(self, backbone: nn.Module, groups: Groups) -> str:
        self._zoo = open_zoo(self.path, backbone, self.theta0, groups, self.task)
        self._theta0 = None  # the zoo has read its own
        return self._zoo.theta0_fingerprint

    @property
    def theta0(self) -> dict[str, Tensor]:
        """The weights that the run began with, on rank 0; a copy once the zoo is open."""
        if self._zoo is not None:
            return as_tensors(self._zoo.theta0())
        assert self._theta0 is not None, "it was captured, or found by its fingerprint"
        return self._theta0

    def add(self, entry: ZooEntry, folder: Path) -> None:
        """Add an entry, or keep it in ``folder``: :func:`add_or_keep`."""
        assert self._zoo is not None, "it was opened before the first step"
        if add_or_keep(self._zoo, entry, folder, self.storage, self.overwrite):
            entries = counted(len(self._zoo), "entry", "entries")
            rank_zero_info(f"wrote {entry.name} to the zoo {self.path}, which has {entries} now")
