"""What a zoo holds, an entry a line, read from the headers alone. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.families import families
from lightning_mvp.zoo.zoo import ModelZoo

SortBy = Literal["name", "accuracy", "size"]

# What a validation accuracy is called: by `TaskModule`, and by most LightningModules of other people.
ACCURACIES = ("val_accuracy", "val/accuracy", "val_acc", "val/acc")
# What else is taken for it: a name that says validation, and the first of these that any such name says.
VALIDATION, MEASURES = ("val", "valid", "validation", "dev"), ("accuracy", "acc", "top1", "auroc", "auc", "f1", "map")
START = "start_val_accuracy"  # of a vote, before it was trained
LOOKED_FOR = (
    f"an accuracy on validation data: {', '.join(ACCURACIES)}, or a name of {'/'.join(VALIDATION)} with one of "
    f"{'/'.join(MEASURES)}, logged in the module or put into MVPCallback.info"
)


@dataclass(frozen=True)
class EntrySummary:
    """One line about an entry; what its header does not say is None.

    Args:
        name: The entry's name.
        config: The hash of its pruning config.
        size: The bytes of its file.
        task: The task's name.
        classes: The number of classes.
        accuracy: The accuracy on validation data, in [0, 1].
        kept: The fraction of "units", "params" and "macs" that was kept.
        settings: The pruning config.
        problem: What is wrong with the entry, if its header shows it.
        family: The hash of the config of the seeds that it was grown from, or of its own config if it was not grown.
    """

    name: str
    config: str
    size: int
    task: str | None = None
    classes: int | None = None
    accuracy: float | None = None
    kept: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    family: str = ""


def validation_accuracy(info: Mapping[str, Any]) -> float | None:
    """The accuracy on validation data that an entry was given, or that was logged last, if it is a number.

    Example:
        >>> validation_accuracy({"metrics": {"val_accuracy": 0.5}}), validation_accuracy({"steps": 100})
        (0.5, None)
        >>> validation_accuracy({"val_accuracy": 0.6, "metrics": {"val_accuracy": 0.5}})
        0.6
        >>> validation_accuracy({"metrics": {"val_loss": 0.1, "valid/top1_epoch": 0.7}})
        0.7
    """
    metrics = {**_numbers(info.get("metrics")), **_numbers(info)}
    exact = [name for name in ACCURACIES if name in metrics]
    if exact:
        return metrics[exact[0]]
    words = {name: re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower() for name in metrics if name != START}
    said = {name: {*re.split(r"[^a-z0-9]+", each)} for name, each in words.items()}
    measured = {name: each for name, each in said.items() if each & {*VALIDATION}}
    return next((metrics[name] for what in MEASURES for name in sorted(measured) if what in measured[name]), None)


def kept_fractions(info: Mapping[str, Any]) -> dict[str, float]:
    """Of "units", "params" and "macs" the fraction that an entry kept, as far as it was recorded.

    Example:
        >>> kept_fractions({"kept": {"units": 0.3, "macs": None}})
        {'units': 0.3}
    """
    return _numbers(info.get("kept"))


def summarise(zoo: ModelZoo, sort: SortBy = "name") -> list[EntrySummary]:
    """All entries of a zoo, damaged ones included: grouped by family, sorted within it.

    Args:
        zoo: The zoo to list. No tensor is read, so a listing of large entries is as quick as one of small ones; what
            only the tensors would show is found by `zoo.verify()`.
        sort: The order within a family: by "name", by "accuracy" (best first, unknown ones last) or by "size"
            (largest first).

    Raises:
        ValueError: The order is another one.

    Example:
        >>> import tempfile, numpy as np
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2})
        >>> summarise(zoo)
        []
    """
    keys: dict[SortBy, Callable[[EntrySummary], Any]] = {
        "name": lambda each: each.name,
        "accuracy": lambda each: (each.accuracy is None, -(each.accuracy or 0.0), each.name),
        "size": lambda each: (-each.size, each.name),
    }
    if sort not in keys:
        raise ValueError(f"Expected argument `sort` to be one of {tuple(keys)}, but got {sort!r}.")
    by_family = ([_summary(zoo, name, family) for name in names] for family, names in families(zoo).items())
    return [each for found in by_family for each in sorted(filter(None, found), key=keys[sort])]


def differing_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What tells configs apart: each one's settings that are not the same in all of them.

    Example:
        >>> differing_settings({"aa": {"rounds": 3, "seed": 0}, "bb": {"rounds": 1, "seed": 0}})
        {'aa': {'rounds': 3}, 'bb': {'rounds': 1}}
    """
    names = dict.fromkeys(name for config in configs.values() for name in config)
    differing = [name for name in names if len({repr(config.get(name)) for config in configs.values()}) > 1]
    return {key: {name: config.get(name) for name in differing} for key, config in configs.items()}


def entry_size(zoo: ModelZoo, name: str) -> int:
    """Bytes of an entry's file on disk; 0 if that can't be told, as of a link to nothing."""
    try:
        return zoo.file(name).stat().st_size
    except OSError:
        return 0


def _summary(zoo: ModelZoo, name: str, family: str) -> EntrySummary | None:
    own = EntrySummary(name, name.rpartition("--")[2], entry_size(zoo, name), family=family)
    try:
        header = zoo.header(name)
    except KeyError:
        return None  # removed since the names were listed
    except DamagedEntryError as error:
        return replace(own, problem=str(error))
    facts, info = header["facts"], header["info"]
    return replace(
        own,
        settings=dict(header["config"]),
        task=facts["name"],
        classes=len(facts["classes"]),
        accuracy=validation_accuracy(info),
        kept=kept_fractions(info),
    )


def _numbers(values: Any) -> dict[str, float]:
    """Those that are numbers: an undefined metric is stored as null."""
    if not isinstance(values, Mapping):
        return {}
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
