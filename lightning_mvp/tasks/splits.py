"""Which tasks there are: seeded k-class subsets of a data set's classes. Pure; no images, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TaskSpec:
    """A task is a name and its classes, in the order of the labels."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class TaskSplit:
    """All tasks drawn from one list of classes.

    `seen` classes make the source tasks (the zoo), the target tasks, and the pre-training set; `held_out` classes are
    seen by none of these and make only `held_out_targets`. `development` tasks are over seen classes, for choices that
    no target may take part in.
    """

    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    source: tuple[TaskSpec, ...]
    target: tuple[TaskSpec, ...]
    held_out_targets: tuple[TaskSpec, ...]
    development: tuple[TaskSpec, ...] = ()

    def get(self, kind: str, index: int) -> TaskSpec:
        """The task named `f"{kind}-{index:03d}"`; `kind` is "source", "target", "development" or "heldout".

        Raises:
            ValueError: for another kind, or an index past the last task.
        """
        tasks = {
            "source": self.source,
            "target": self.target,
            "development": self.development,
            "heldout": self.held_out_targets,
        }
        if kind not in tasks:
            raise ValueError(f"Expected argument `kind` to be one of {tuple(tasks)}, but got {kind!r}.")
        if not 0 <= index < len(tasks[kind]):
            raise ValueError(
                f"Expected argument `index` to be in [0, {len(tasks[kind])}) for {kind} tasks, but got {index}. "
                "Ask `split_tasks` for more of them."
            )
        return tasks[kind][index]


def split_tasks(
    classes: Sequence[str],
    *,
    classes_per_task: int = 10,
    sources: int = 24,
    targets: int = 6,
    held_out_targets: int = 0,
    held_out_fraction: float = 0.2,
    development: int = 0,
    draw: int = 0,
    seed: int = 0,
) -> TaskSplit:
    """Draw source, target and held-out tasks, each a distinct set of `classes_per_task` classes.

    `round_half_up(held_out_fraction · |classes|)` classes are held out. Source and target tasks are subsets of the
    others, held-out targets are subsets of the held-out ones. Each task takes the classes used least so far in its
    kind, ties broken at random, so use is balanced. No source has the classes of a target. Asking for more sources
    changes neither the first ones nor the targets; nor does asking for development tasks.

    Args:
        classes: all class names of the data set.
        classes_per_task: k, at least 2.
        sources: number of tasks for the zoo.
        targets: number of new tasks over seen classes.
        held_out_targets: number of new tasks over classes that nothing else has seen.
        held_out_fraction: share of the classes in [0, 1) that is held out.
        development: number of tasks over seen classes for choices, none of them a source or target.
        draw: another number draws other tasks, and holds out the same classes.
        seed: all draws follow from it and from `draw`.

    Raises:
        ValueError: for repeated classes, a count or fraction out of range, fewer classes than k, or more tasks than
            there are distinct sets of k classes.

    Example:
        >>> split = split_tasks([f"c{i}" for i in range(10)], classes_per_task=3, sources=4, targets=1)
        >>> len(split.seen), len(split.held_out), [task.name for task in split.source][-1]
        (8, 2, 'source-003')
        >>> split.get("target", 0).classes
        ('c5', 'c7', 'c9')
    """
    if len(set(classes)) != len(classes):
        raise ValueError("Expected argument `classes` to hold each class once, but some names are repeated.")
    if classes_per_task < 2:
        raise ValueError(
            f"Expected argument `classes_per_task` to be an int of at least 2, but got {classes_per_task}."
        )
    for name, count in (
        ("sources", sources),
        ("targets", targets),
        ("held_out_targets", held_out_targets),
        ("development", development),
        ("draw", draw),
    ):
        if count < 0:
            raise ValueError(f"Expected argument `{name}` to be an int of at least 0, but got {count}.")
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"Expected argument `held_out_fraction` to be a float in [0, 1), but got {held_out_fraction}.")

    # Each kind of task has a random generator of its own, so that drawing more of one kind does not change the others.
    more = [draw] if draw else []
    hold = np.random.default_rng([seed, 0])
    target_rng, source_rng, held_rng, development_rng = (
        np.random.default_rng([seed, stream, *more]) for stream in range(1, 5)
    )
    held = set(hold.permutation(len(classes))[: math.floor(held_out_fraction * len(classes) + 0.5)].tolist())
    seen = tuple(name for index, name in enumerate(classes) if index not in held)
    held_out = tuple(name for index, name in enumerate(classes) if index in held)
    if sources + targets + development:
        _check_room(seen, classes_per_task, sources + targets + development, "seen")
    if held_out_targets:
        _check_room(held_out, classes_per_task, held_out_targets, "held-out")

    used: set[tuple[str, ...]] = set()
    target = _draw_tasks("target", seen, classes_per_task, targets, used, target_rng)
    source = _draw_tasks("source", seen, classes_per_task, sources, used, source_rng)
    heldout = _draw_tasks("heldout", held_out, classes_per_task, held_out_targets, used, held_rng)
    developing = _draw_tasks("development", seen, classes_per_task, development, used, development_rng)
    return TaskSplit(seen, held_out, source, target, heldout, developing)


def _check_room(pool: tuple[str, ...], k: int, tasks: int, kind: str) -> None:
    if len(pool) < k:
        raise ValueError(
            f"Expected at least {k} {kind} classes for tasks of {k} classes, but got {len(pool)}. "
            "Lower `classes_per_task` or change `held_out_fraction`."
        )
    if math.comb(len(pool), k) < tasks:
        raise ValueError(
            f"Expected at most {math.comb(len(pool), k)} tasks, the number of sets of {k} out of {len(pool)} {kind} "
            f"classes, but got {tasks}. Ask for fewer tasks."
        )


def _draw_tasks(
    kind: str, pool: tuple[str, ...], k: int, count: int, used: set[tuple[str, ...]], rng: np.random.Generator
) -> tuple[TaskSpec, ...]:
    """Draw `count` balanced subsets of `pool` that are not in `used`, and add them to it."""
    uses = np.zeros(len(pool))
    tasks = []
    for index in range(count):
        slack = 1.0  # up to 1, noise only breaks ties between whole-numbered uses
        while True:
            chosen = np.sort(np.argsort(uses + slack * rng.random(len(pool)))[:k])
            classes = tuple(pool[i] for i in chosen)
            if classes not in used:
                break
            slack += 0.5  # the balanced choice is taken: trade balance for a new set
        used.add(classes)
        uses[chosen] += 1
        tasks.append(TaskSpec(f"{kind}-{index:03d}", classes))
    return tuple(tasks)
