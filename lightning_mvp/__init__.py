"""Meta-Vote Pruning for PyTorch Lightning.

Keep a zoo of pruned models; for a new task let its nearest tasks vote which units to keep, average their weights,
build that model physically small and fine-tune it for about a hundred steps (Zhao, Zhou, Long, Jiang, Zhang,
"Voting from Nearest Tasks", ECML PKDD 2023, arXiv 2301.11560).

Names are imported on first use, so that reading a zoo needs no torch and ``--help`` stays quick.

Example:
    >>> import lightning_mvp
    >>> "MVPCallback" in dir(lightning_mvp)
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_mvp.version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers and editors see; `_HOMES` says the same to Python
    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.backbones.groups import Groups, UnitGroup, find_groups
    from lightning_mvp.backbones.masks import Masks, apply_masks
    from lightning_mvp.backbones.pretrained import timm_preprocessing
    from lightning_mvp.backbones.reconstruct import reconstruct
    from lightning_mvp.backbones.surgery import shrink
    from lightning_mvp.backbones.targets import trust_backbone
    from lightning_mvp.callbacks.checkpoint import PrunedCheckpoint
    from lightning_mvp.callbacks.early_stopping import PrunedEarlyStopping
    from lightning_mvp.callbacks.mask_export import MaskExport
    from lightning_mvp.callbacks.mvp import MVPCallback
    from lightning_mvp.callbacks.run_picture import RunPicture
    from lightning_mvp.export.export import export_model
    from lightning_mvp.fitting.growing import grow
    from lightning_mvp.tasks.data import ImageData, load_data
    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.facts import TaskFacts
    from lightning_mvp.tasks.splits import TaskSpec, TaskSplit, split_tasks
    from lightning_mvp.training.adding import add_voted
    from lightning_mvp.training.meta_vote import MetaVoteModule
    from lightning_mvp.training.mimic import mimic_loss
    from lightning_mvp.training.once import prune_once
    from lightning_mvp.training.task import TaskModule
    from lightning_mvp.voting.latest import latest
    from lightning_mvp.voting.leep import leep
    from lightning_mvp.voting.merge import merge
    from lightning_mvp.voting.vote import vote
    from lightning_mvp.voting.voted import VoteReport, voted_backbone
    from lightning_mvp.zoo.entry import ZooEntry
    from lightning_mvp.zoo.zoo import ModelZoo


_HOMES = {
    "tasks.facts": ("TaskFacts",),
    "tasks.splits": ("TaskSpec", "TaskSplit", "split_tasks"),
    "tasks.data": ("ImageData", "load_data"),
    "tasks.datamodule": ("TaskDataModule",),
    "backbones.create": ("create_backbone",),
    "backbones.groups": ("Groups", "UnitGroup", "find_groups"),
    "backbones.masks": ("Masks", "apply_masks"),
    "backbones.pretrained": ("timm_preprocessing",),
    "backbones.reconstruct": ("reconstruct",),
    "backbones.surgery": ("shrink",),
    "backbones.targets": ("trust_backbone",),
    "zoo.entry": ("ZooEntry",),
    "zoo.zoo": ("ModelZoo",),
    "voting.leep": ("leep",),
    "voting.latest": ("latest",),
    "voting.vote": ("vote",),
    "voting.merge": ("merge",),
    "voting.voted": ("VoteReport", "voted_backbone"),
    "callbacks.mvp": ("MVPCallback",),
    "callbacks.mask_export": ("MaskExport",),
    "callbacks.checkpoint": ("PrunedCheckpoint",),
    "callbacks.early_stopping": ("PrunedEarlyStopping",),
    "callbacks.run_picture": ("RunPicture",),
    "training.task": ("TaskModule",),
    "training.mimic": ("mimic_loss",),
    "training.meta_vote": ("MetaVoteModule",),
    "training.adding": ("add_voted",),
    "fitting.growing": ("grow",),
    "training.once": ("prune_once",),
    "export.export": ("export_model",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Groups",
    "ImageData",
    "MVPCallback",
    "MaskExport",
    "Masks",
    "MetaVoteModule",
    "ModelZoo",
    "PrunedCheckpoint",
    "PrunedEarlyStopping",
    "RunPicture",
    "TaskDataModule",
    "TaskFacts",
    "TaskModule",
    "TaskSpec",
    "TaskSplit",
    "UnitGroup",
    "VoteReport",
    "ZooEntry",
    "add_voted",
    "apply_masks",
    "create_backbone",
    "export_model",
    "find_groups",
    "grow",
    "latest",
    "leep",
    "load_data",
    "merge",
    "mimic_loss",
    "prune_once",
    "reconstruct",
    "shrink",
    "split_tasks",
    "timm_preprocessing",
    "trust_backbone",
    "vote",
    "voted_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lightning_mvp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"lightning_mvp.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
