"""What is to be learned: data sets, their one partition, tasks as sets of classes, and the loaders over them.

Names are imported on first use, so reading `TaskFacts` or `split_tasks` costs neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_mvp.tasks.data import load_data
    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.facts import TaskFacts
    from lightning_mvp.tasks.loader import TaskLoader
    from lightning_mvp.tasks.partition import ImageData, Part
    from lightning_mvp.tasks.preprocessing import preprocess
    from lightning_mvp.tasks.splits import TaskSpec, TaskSplit, split_tasks

_MODULE_OF = {
    "ImageData": "partition",
    "Part": "partition",
    "TaskDataModule": "datamodule",
    "TaskFacts": "facts",
    "TaskLoader": "loader",
    "TaskSpec": "splits",
    "TaskSplit": "splits",
    "load_data": "data",
    "preprocess": "preprocessing",
    "split_tasks": "splits",
}

__all__ = [
    "ImageData",
    "Part",
    "TaskDataModule",
    "TaskFacts",
    "TaskLoader",
    "TaskSpec",
    "TaskSplit",
    "load_data",
    "preprocess",
    "split_tasks",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
