from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mvp.tasks import split_tasks

CLASSES = [f"c{index:03d}" for index in range(50)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 8), sources=st.integers(0, 30), fraction=st.floats(0.2, 0.6))
def test_tasks_are_distinct_balanced_and_apart_from_held_out(seed: int, k: int, sources: int, fraction: float) -> None:
    split = split_tasks(
        CLASSES,
        classes_per_task=k,
        sources=sources,
        targets=4,
        held_out_targets=2,
        held_out_fraction=fraction,
        seed=seed,
    )
    assert sorted(split.seen + split.held_out) == CLASSES
    tasks = split.source + split.target + split.held_out_targets
    assert len({frozenset(task.classes) for task in tasks}) == len(tasks) == sources + 6
    assert all(len(set(task.classes)) == k for task in tasks)
    assert all(set(task.classes) <= set(split.seen) for task in split.source + split.target)
    assert all(set(task.classes) <= set(split.held_out) for task in split.held_out_targets)
    uses = Counter(name for task in split.source for name in task.classes)
    counts = [uses[name] for name in split.seen]
    assert max(counts) - min(counts) <= 2  # 1 but for a set that was taken


def test_asking_for_more_changes_nothing_before() -> None:
    few = split_tasks(CLASSES, sources=3, targets=2, held_out_targets=0, seed=5)
    many = split_tasks(CLASSES, sources=40, targets=2, held_out_targets=1, seed=5)
    assert many.source[:3] == few.source
    assert many.target == few.target
    assert many.seen == few.seen


def test_seed_matters_and_repeats() -> None:
    assert split_tasks(CLASSES, seed=1) == split_tasks(CLASSES, seed=1)
    assert split_tasks(CLASSES, seed=1) != split_tasks(CLASSES, seed=2)


def test_every_possible_set_can_be_drawn() -> None:
    split = split_tasks(CLASSES[:5], classes_per_task=2, sources=8, targets=2, held_out_fraction=0)
    assert len({task.classes for task in split.source + split.target}) == 10


def test_get_finds_by_name() -> None:
    split = split_tasks(CLASSES, sources=3, targets=2, held_out_targets=1)
    assert split.get("source", 2).name == "source-002"
    assert split.get("target", 1) is split.target[1]
    assert split.get("heldout", 0).name == "heldout-000"
    with pytest.raises(ValueError, match="`kind`"):
        split.get("sources", 0)
    with pytest.raises(ValueError, match=r"\[0, 3\) for source tasks, but got 3"):
        split.get("source", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_task": 41}, "at least 41 seen classes"),
        ({"held_out_targets": 1, "held_out_fraction": 0.1}, "at least 10 held-out classes"),
        ({"classes_per_task": 1}, "`classes_per_task`"),
        ({"sources": -1}, "`sources`"),
        ({"held_out_fraction": 1.0}, "`held_out_fraction`"),
        ({"classes_per_task": 39, "sources": 35, "targets": 6}, "at most 40 tasks"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_tasks(CLASSES, **arguments)  # type: ignore[arg-type]


def test_repeated_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        split_tasks(["a", "b", "a"], classes_per_task=2, sources=1, targets=0)
