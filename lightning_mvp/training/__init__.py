"""LightningModules: a classifier for one task, and the one that a zoo voted."""

from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.training.task import TaskModule

__all__ = ["MetaVoteModule", "TaskModule"]
