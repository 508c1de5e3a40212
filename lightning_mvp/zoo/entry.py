"""One entry of a zoo: the pruned model of one source task, its name, and what must be true of it. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# The side of an image before it is cropped: whoever votes gives every source its own preprocessing, so that a hostile
# entry could ask for images of any size.
MOST_PIXELS = 8192


class DamagedEntryError(ValueError):
    """A zoo file that cannot be trusted; the message names the file and the reason."""


@dataclass(frozen=True)
class ZooEntry:
    """What is kept of one pruned model.

    Args:
        name: ``entry_id(facts["name"], config)``; the file has the same name.
        facts: The task as `TaskFacts.to_dict()` gives it; `name` and `classes` are required.
        config: The pruning configuration (plain JSON); its hash is part of the name.
        masks: For each group a bool array ``(units,)``, true for the units kept.
        weights: The kept entries of each tensor, by its name in the state dict.
        importance: For each group a float32 array ``(units,)``, the last finite score of each unit; may be empty.
        head: The arrays ``weight`` ``(classes, kept features)`` and perhaps ``bias`` ``(classes,)``, or nothing.
        prototypes: The class means of θ⁰'s features ``(classes, dense features)``, or None.
        info: Anything else worth knowing (accuracy, steps, seed, versions, seconds …; plain JSON, NaN is written null).
        prototypes_seen_by: The preprocessing in which θ⁰ saw the images of the prototypes: facts without `name` and
            `classes`. None: that of `facts`.
    """

    name: str
    facts: dict[str, Any]
    config: dict[str, Any]
    masks: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    importance: dict[str, np.ndarray] = field(default_factory=dict)
    head: dict[str, np.ndarray] = field(default_factory=dict)
    prototypes: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    prototypes_seen_by: dict[str, Any] | None = None

    @property
    def seen_by(self) -> dict[str, Any]:
        """The facts by which θ⁰'s features are comparable with the prototypes."""
        return self.facts if self.prototypes_seen_by is None else self.prototypes_seen_by


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of the SHA-256 of `config` as JSON with sorted keys.

    Example:
        >>> config_hash({"rounds": 8, "pruning_ratio": 0.7}) == config_hash({"pruning_ratio": 0.7, "rounds": 8})
        True
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def entry_id(task_name: str, config: Mapping[str, Any]) -> str:
    """``<task>--<hash8 of the pruning config>``: the name of an entry in its zoo.

    Raises:
        ValueError: The task's name cannot be part of a file name.

    Example:
        >>> entry_id("source-003", {"pruning_ratio": 0.7})
        'source-003--ca436456'
    """
    if (
        not isinstance(task_name, str)
        or not task_name.isprintable()
        or not task_name.strip(".")
        or set("/\\") & set(task_name)
    ):
        raise ValueError(
            f"Expected a task name that is printable, not only dots, and without slashes, but got {task_name!r}. "
            "Rename the task: its zoo entry is a file of that name."
        )
    return f"{task_name}--{config_hash(config)}"


def validate(entry: ZooEntry) -> None:
    """Raise ValueError, saying what was expected and what was found, unless `entry` agrees with itself."""
    validate_facts(entry.name, entry.facts, entry.config, entry.info)
    validate_seen_by(entry.name, entry.prototypes_seen_by)
    if not entry.masks or not entry.weights:
        raise ValueError(f"Expected entry {entry.name!r} to have masks and weights, but one of them is empty.")
    for group, mask in entry.masks.items():
        if mask.dtype != bool or mask.ndim != 1 or not mask.any():
            raise ValueError(
                f"Expected the mask of group {group!r} to be bool of shape (units,) with at least one unit kept, "
                f"but got {mask.dtype} of shape {mask.shape} with {np.count_nonzero(mask)} kept."
            )
    if entry.importance and entry.importance.keys() != entry.masks.keys():
        differing = sorted(entry.importance.keys() ^ entry.masks.keys())
        raise ValueError(f"Expected importance and masks of the same groups, but they differ in {differing}.")
    for group, scores in entry.importance.items():
        _expect(f"importance of group {group!r}", scores, entry.masks[group].shape)
    for name, value in entry.weights.items():
        _expect(f"weight {name!r}", value, value.shape, empty=True)
    classes = len(entry.facts["classes"])
    if entry.head:
        if not {"weight"} <= entry.head.keys() <= {"weight", "bias"}:
            raise ValueError(f"Expected the head to have 'weight' and perhaps 'bias', but got {sorted(entry.head)}.")
        _expect("head's weight", entry.head["weight"], (classes, *entry.head["weight"].shape[1:2]), ndim=2, kind="f")
        if "bias" in entry.head:
            _expect("head's bias", entry.head["bias"], (classes,), kind="f")
    if entry.prototypes is not None:
        _expect("prototypes", entry.prototypes, (classes, *entry.prototypes.shape[1:2]), ndim=2, kind="f")


def validate_facts(name: Any, facts: Any, config: Any, info: Any) -> None:
    """The part of `validate` that needs no tensors; any types may be given, as they come from a file."""
    for what, value in (("facts", facts), ("config", config), ("info", info)):
        if not isinstance(value, Mapping):
            raise ValueError(f"Expected the {what} of entry {name!r} to be a mapping, but got {str(value)[:80]!r}.")
    missing = {"name", "classes"} - facts.keys()
    if missing:
        raise ValueError(f"Expected the facts of entry {name!r} to have {sorted(missing)}, but they are missing.")
    expected = entry_id(facts["name"], config)
    if name != expected:
        raise ValueError(f"Expected the entry of this task and config to be named {expected!r}, but got {name!r}.")
    classes = facts["classes"]
    if (
        not isinstance(classes, (list, tuple))
        or not classes
        or not all(isinstance(label, str) and label for label in classes)
        or len(set(classes)) < len(classes)
    ):
        raise ValueError(
            f"Expected the classes of entry {name!r} to be one or more distinct names, but got {str(classes)[:200]}."
        )
    require_size(f"entry {name!r}", facts)


def validate_seen_by(name: Any, seen_by: Any) -> None:
    """Likewise, of what the prototypes were made with."""
    if seen_by is None:
        return
    if not isinstance(seen_by, Mapping) or {"name", "classes"} & seen_by.keys():
        raise ValueError(
            f"Expected the prototypes of entry {name!r} to be seen by facts without name and classes, but got "
            f"{str(seen_by)[:80]!r}."
        )
    require_size(f"the prototypes of entry {name!r}", seen_by)


def require_size(what: str, facts: Mapping[str, Any]) -> None:
    """Refuse facts by which images would become larger than any memory."""
    size, crop = facts.get("input_size", 1), facts.get("crop", 1.0)
    if type(size) is not int or not isinstance(crop, (int, float)) or not 1 <= size <= MOST_PIXELS * crop:
        raise ValueError(
            f"Expected the images of {what} to have a side of 1 to {MOST_PIXELS} pixels before they are "
            f"cropped, but got input_size {str(size)[:40]} and crop {str(crop)[:40]}."
        )


def _expect(
    what: str,
    value: np.ndarray,
    shape: tuple[int, ...],
    ndim: int | None = None,
    kind: str = "biuf",
    empty: bool = False,
) -> None:
    if value.shape != shape or (ndim is not None and value.ndim != ndim):
        raise ValueError(f"Expected the {what} to have shape {shape}, but got {value.shape}.")
    if not (value.size or empty):
        raise ValueError(f"Expected the {what} to hold something, but its shape is {shape}.")
    if value.dtype.kind not in kind:
        raise ValueError(f"Expected the {what} to be of numbers, but got {value.dtype}.")
    if not np.isfinite(value).all():
        raise ValueError(f"Expected the {what} to be finite, but it holds NaN or infinity.")
