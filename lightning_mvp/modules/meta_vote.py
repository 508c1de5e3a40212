"""The voted small model of a new task, ready for a Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lightning_mvp.backbones.create import plain
from lightning_mvp.modules.task import HeadInit, TaskModule
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.merge import Missing
from lightning_mvp.voting.similarity import Similarity
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo.zoo import ModelZoo


class MetaVoteModule(TaskModule):
    """A :class:`TaskModule` over :func:`~lightning_mvp.voting.voted.voted_backbone`; make one with :meth:`from_zoo`.

    ``load_from_checkpoint`` rebuilds the small model from the checkpoint's hyper-parameters and needs no zoo.

    Args:
        recipe: the small backbone's recipe, widths included.
        facts: the task's facts as a plain dict.
        report: what the vote did, as a plain dict (:meth:`VoteReport.to_dict`).
        options: of :class:`TaskModule`.
    """

    def __init__(
        self, recipe: Mapping[str, Any], facts: Mapping[str, Any], report: Mapping[str, Any], **options: Any
    ) -> None:
        # Lightning saves what this constructor was given, too: all of it plain.
        recipe, facts, report = plain(recipe), plain(facts), plain(report)
        super().__init__(recipe, facts, **options)
        self.report = dict(report)

    @classmethod
    def from_zoo(
        cls,
        zoo: ModelZoo | str | Path,
        datamodule: TaskDataModule,
        neighbours: int = 8,
        pruning_ratio: float | None = None,
        similarity: Similarity = "leep",
        *,
        temperature: float | None = None,
        missing: Missing = "theta0",
        head_init: HeadInit = "ridge",
        backbone: nn.Module | None = None,
        config: str | None = None,
        seed: int = 0,
        exclude: tuple[str, ...] = (),
        **options: Any,
    ) -> MetaVoteModule:
        """Find the nearest tasks, vote, merge, cut, set the head; nothing is trained yet.

        Args:
            zoo: a zoo or its folder.
            datamodule: the new task; only its training images are used.
            neighbours: how many zoo entries vote.
            pruning_ratio: of the voted model; default: the neighbours' mean widths.
            similarity: ``"leep"`` or ``"prototypes"`` (``"random"`` and ``"farthest"`` are controls).
            temperature: votes and weights by softmax(score / temperature); None: all neighbours count alike.
            missing: what an entry gets that no neighbour kept, see :func:`~lightning_mvp.voting.merge.merge`.
            head_init: ``"ridge"`` (closed form on the training images) or ``"random"``.
            backbone: the dense backbone, where the zoo has no recipe to build it from.
            config: hash of one pruning configuration of the zoo; default as in :meth:`ModelZoo.nearest`.
            seed: of the scoring images and of ``similarity="random"``.
            exclude: names of entries that may not vote.
            options: of :class:`TaskModule`: ``learning_rate``, ``optimizer``, ``weight_decay``, ``schedule``.

        Returns:
            The module; its ``report`` says what was done, also printed once.
        """
        if not isinstance(zoo, ModelZoo):
            zoo = ModelZoo(zoo)
        small, report = voted_backbone(
            zoo,
            datamodule,
            neighbours=neighbours,
            pruning_ratio=pruning_ratio,
            similarity=similarity,
            temperature=temperature,
            missing=missing,
            backbone=backbone,
            config=config,
            seed=seed,
            exclude=exclude,
        )
        module = cls.for_task(small, datamodule.facts, report=report.to_dict(), **options)
        assert isinstance(module, cls)
        module.initialise_head(datamodule, head_init)
        rank_zero_info(report.summary())
        return module
