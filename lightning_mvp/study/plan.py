"""Which parts a study has, in which order, and about how long each takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_mvp.study.methods import METHODS, Trial
from lightning_mvp.study.records import rank_part
from lightning_mvp.study.study_settings import StudySettings

SMALL_STEP = 0.35  # what a step of a physically small model costs, as a share of a dense one's
CUT_STEP = 0.6  # what a step costs on average while a model is cut in rounds
OVERHEAD_STEPS = 40  # what a part costs besides its steps (groups, ridge head, evaluation), in dense steps
SHARES = {"zoo": SMALL_STEP, "generic": SMALL_STEP, "once": SMALL_STEP, "rounds": CUT_STEP, "dense": 1.0}


@dataclass(frozen=True)
class PlannedPart:
    """One unit of work, with its cost in steps of the dense backbone, for the display."""

    name: str
    cost: float


Waves = list[list[PlannedPart]]


def plan(settings: StudySettings) -> dict[str, Waves]:
    """The parts of each stage, in waves of which each needs those before it.

    Example:
        >>> settings = StudySettings({}, {"sources": 2, "targets": 1}, {}, methods=("mvp", "dense"))
        >>> [[part.name for part in wave] for wave in plan(settings)["compare"]]
        [['rank--target-000'], ['target-000--dense@100', 'target-000--mvp@100']]
    """
    sources, development = settings.sources, settings.split.get("development", 0)
    ranks = [PlannedPart(rank_part(name, "leep"), 2.0 * len(sources)) for name in sources]
    own = settings.zoo_of is None
    return {
        "pretrain": [] if settings.home is not None else _first_parts(settings),
        "zoo": [_zoo_parts(settings)] if own else [],
        "grow": _growth_waves(settings) if own else [],
        "overlap": [ranks, [PlannedPart("overlap", 2.0 * len(sources))]] if own else [],
        "compare": _runs(
            settings.target_kind, settings.targets, settings.measured(), settings, settings.number_of_targets
        ),
        "ablate": _runs("development", development, settings.tried(), settings, lambda trial: development),
    }


def _first_parts(settings: StudySettings) -> Waves:
    cost = settings.pretrain.get("steps", 300) * settings.pretrain.get("batch_size", 128) / settings.batch_size
    if settings.weights is not None or settings.pretrained:
        cost = 1.0
    first = [[PlannedPart("pretrain", cost)]]
    if settings.parent is not None:
        share = settings.parent.get("batch_size", settings.batch_size) / settings.batch_size
        first.append([PlannedPart("parent", CUT_STEP * settings.parent["steps"] * share + OVERHEAD_STEPS)])
    return first


def _zoo_parts(settings: StudySettings) -> list[PlannedPart]:
    """The zoo's entries, and the broad models that methods or trials begin with."""
    entry = settings.source_steps * (1.0 if settings.parent is None else CUT_STEP)
    budgets = {"generic": settings.source_steps, "generic_parent": entry, "generic_zoo": settings.zoo_steps}
    generic = [PlannedPart(name, budgets[name] + 4 * OVERHEAD_STEPS) for name in generic_models(settings)]
    return _longest_first([PlannedPart(name, entry + OVERHEAD_STEPS) for name in settings.sources] + generic)


def _growth_waves(settings: StudySettings) -> Waves:
    """Waves of one task for each growing zoo: a zoo grows by one task after the other, several zoos at a time."""
    growths = {name: settings.growth(name) for name in settings.growths}
    longest = max((growth.tasks for growth in growths.values()), default=0)
    return [
        [
            PlannedPart(f"grow-{name}-{index:03d}", SMALL_STEP * growth.steps + OVERHEAD_STEPS)
            for name, growth in growths.items()
            if index < growth.tasks
        ]
        for index in range(longest)
    ]


def generic_models(settings: StudySettings) -> list[str]:
    """The broad models that methods or trials begin with."""
    needed = {trial.method for trial in (*settings.measured(), *settings.tried())}
    return [name for name in ("generic", "generic_parent", "generic_zoo") if name in needed]


def _runs(
    kind: str, tasks: int, trials: Sequence[Trial], settings: StudySettings, number_of_tasks: Callable[[Trial], int]
) -> Waves:
    """A wave of the rankings that methods with neighbours need, then a wave of all runs."""
    ranks, runs = {}, []
    for index in range(tasks):
        task = f"{kind}-{index:03d}"
        for trial in trials:
            if index >= number_of_tasks(trial):
                continue
            group = METHODS[trial.method].kind
            if group == "zoo" and trial.method != "grown":
                part = rank_part(task, settings.changed(trial.changes).vote.get("similarity", "leep"))
                ranks[part] = PlannedPart(part, 2.0 * len(settings.sources))
            runs.append(PlannedPart(f"{task}--{trial.name}", SHARES[group] * trial.steps + OVERHEAD_STEPS))
    return [wave for wave in (list(ranks.values()), _longest_first(runs)) if wave]


def _longest_first(parts: list[PlannedPart]) -> list[PlannedPart]:
    """The longest parts first, so that workers finish at about the same time."""
    return sorted(parts, key=lambda part: (-part.cost, part.name))


def parts_of_shard(parts: Sequence[PlannedPart], shard: int, shards: int) -> list[PlannedPart]:
    """The parts of one of several jobs, chosen by task, so that each run's ranking is made by the same job."""
    tasks = [re.search(r"(?:source|target|heldout|development)-(\d+)", part.name) for part in parts]
    numbers = [0 if task is None else int(task[1]) for task in tasks]
    return [part for part, number in zip(parts, numbers, strict=True) if number % shards == shard]
