"""What a comparison refuses before any process starts and anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.checks import require_whole
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.schedule import require_time_for
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.study.methods import METHODS, ORACLE
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.splits import split_tasks
from lightning_mvp.training.rounds import require_known_optim
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.merge import Missing
from lightning_mvp.voting.similarities import SIMILARITIES
from lightning_mvp.voting.vote import Ballots, require_temperature


def refuse_bad_settings(settings: StudySettings) -> None:
    """Try what every part needs, cheaply: the data, the tasks, the backbone, the rounds and the vote's arguments.

    Raises:
        ValueError: what was expected, what it got, and what to do.
        FileNotFoundError: files of the data set or weights of the backbone are missing.
    """
    if settings.split["sources"] < 1 and settings.zoo_of is None:
        raise ValueError(f"Expected `split.sources` to be at least 1, but got {settings.split['sources']}.")
    if settings.targets < 1:
        name = "held_out_targets" if settings.target_kind == "heldout" else "targets"
        raise ValueError(f"Expected `split.{name}` to be at least 1, but got {settings.targets}.")
    _refuse_bad_vote(settings)
    _refuse_bad_sizes(settings)
    pruning = PruningSettings(**settings.pruning)
    require_time_for(pruning.schedule(settings.source_steps), settings.source_steps)
    for trial in (*settings.measured(), *settings.tried()):
        own = settings.changed(trial.changes)
        _refuse_bad_vote(own)
        if trial.method == "grown":
            require_growth(trial.name, own.vote, settings)
        if METHODS[trial.method].kind == "rounds":
            require_time_for(PruningSettings(**own.pruning).schedule(trial.steps), trial.steps)
        if settings.parent is None and trial.method == "generic_parent":
            raise ValueError("Expected `parent` to be given for the method generic_parent, but got None.")
    data = load_data(**settings.data).loaded()
    task = split_tasks(data.classes, **settings.split).get(settings.target_kind, 0)
    options: dict[str, Any] = {"augment": settings.augment, "images_per_class": settings.images_per_class}
    datamodule = TaskDataModule(data, task.classes, task.name, settings.batch_size, **options)
    backbone = create_backbone(settings.recipe, weights=settings.weights)
    require_known_optim(settings.optim.get("optimizer", "sgd"), settings.optim.get("schedule", "onecycle"))
    TaskModule.for_task(backbone, datamodule.facts, **settings.optim)
    if pruning.ratio_of != "units" or pruning.scope == "global":
        # Whether the ratio can be reached depends on the backbone, and not on which units score best.
        example = torch.zeros(1, *data.image_shape)
        groups = find_groups(backbone, example, check=False).select(pruning.include, pruning.exclude)
        scores = {group.name: torch.ones(group.size) for group in groups}
        cost = CostModel(backbone, groups, example)
        pruning.choose(scores, Masks.full(groups), 1 - pruning.pruning_ratio, groups, cost)


def _refuse_bad_vote(settings: StudySettings) -> None:
    vote = settings.vote
    if vote.get("similarity") != ORACLE:
        require_choice("vote.similarity", vote.get("similarity", "leep"), Literal[tuple(SIMILARITIES.known)])
    require_choice("vote.missing", vote.get("missing", "theta0"), Missing)
    require_choice("vote.ballots", vote.get("ballots", "masks"), Ballots)
    require_whole(vote.get("neighbours", 8), "`vote.neighbours`")
    require_temperature(vote.get("temperature"))


def _refuse_bad_sizes(settings: StudySettings) -> None:
    """What would make the models of a comparison of other sizes than it says."""
    vote, neighbours = settings.vote, settings.vote.get("neighbours", 8)
    if settings.zoo_of is None and neighbours > settings.split["sources"]:
        warnings.warn(
            f"Expected at least `vote.neighbours`={neighbours} source tasks to vote, but `split.sources` is "
            f"{settings.split['sources']}: all of them vote.",
            stacklevel=3,
        )
    if vote.get("pruning_ratio") is not None:
        raise ValueError(
            f"Expected `vote.pruning_ratio` to be null, but got {vote['pruning_ratio']!r}: voted models would be of "
            "another size than those they are compared with. Set `pruning.pruning_ratio`, which holds for all."
        )


def require_growth(trial: str, vote: Mapping[str, Any], settings: StudySettings) -> None:
    """Refuse a run from a grown zoo that does not say which one, or wants more entries than it will have.

    Args:
        trial: name of the run.
        vote: its settings of a vote.
        settings: of the study.

    Raises:
        ValueError: what was expected, and what it got.
    """
    name, entries = vote.get("growth"), vote.get("entries")
    if name not in settings.growths:
        raise ValueError(f"Expected {trial} to have `vote.growth` out of {list(settings.growths)}, but got {name!r}.")
    growth = settings.growth(name)
    most = growth.seeds + growth.tasks
    if not isinstance(entries, int) or not growth.seeds <= entries <= most:
        raise ValueError(
            f"Expected {trial} to have `vote.entries` from {growth.seeds} to {most}, the seeds of growth {name} and "
            f"with all its tasks, but got {entries!r}."
        )
