"""How a model sees its images: a task's facts but for its name and classes, as plain JSON. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo.entry import require_size


def preprocessing_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A task's facts but for its name and classes.

    Example:
        >>> preprocessing_of({"name": "pets", "classes": ["cat", "dog"], "input_size": 32, "mean": [0.5]})
        {'input_size': 32, 'mean': [0.5]}
    """
    return {name: value for name, value in facts.items() if name not in ("name", "classes")}


def as_seen_by(task: TaskFacts, preprocessing: Mapping[str, Any] | None) -> TaskFacts:
    """The task's name and classes with this preprocessing; None leaves the task its own.

    Example:
        >>> pets = TaskFacts("pets", ("cat", "dog"), input_size=32, mean=(0.5,), std=(0.25,))
        >>> as_seen_by(pets, {"input_size": 64, "mean": [0.4], "std": [0.2]}).input_size
        64
    """
    if preprocessing is None:
        return task
    return TaskFacts.from_dict({"name": task.name, "classes": task.classes, **preprocessing})


def require_preprocessing(value: Any) -> dict[str, Any]:
    """A preprocessing as it is stored, or a ValueError that says what is wrong with it; any type may be given.

    Example:
        >>> require_preprocessing({"input_size": 64, "mean": (0.4,), "std": (0.2,)})["mean"]
        [0.4]
    """
    if not isinstance(value, Mapping) or {"name", "classes"} & value.keys():
        raise ValueError(f"expected input_size, mean, std, interpolation and crop, but got {str(value)[:200]}")
    try:
        facts = TaskFacts.from_dict({"name": "any", "classes": ["any"], **value}).to_dict()
    except TypeError as error:  # a mean of what is no number
        raise ValueError(f"expected numbers for mean and std, but got {str(value)[:200]} ({error})") from error
    require_size("the preprocessing", facts)
    return preprocessing_of(facts)
