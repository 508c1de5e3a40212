"""What a job comes to: the number that a sweeper may optimise, and what else its row of jobs.csv says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names in a job's record, and columns of jobs.csv. Accuracies and what is kept are fractions; MACs are of one image.
FACTS = ("entry", "output", "val_accuracy", "test_accuracy", "parameters", "macs", "parameters_kept", "macs_kept")


class Outcome(float):
    """A job's metric, with facts about what it made.

    Example:
        >>> made = Outcome(0.5, entry="pets--1a2b3c4d", parameters=1200)
        >>> made + 0, made.facts
        (0.5, {'entry': 'pets--1a2b3c4d', 'parameters': 1200})
    """

    facts: dict[str, Any]

    def __new__(cls, metric: float, **facts: Any) -> Outcome:
        made = super().__new__(cls, metric)
        made.facts = {name: facts[name] for name in FACTS if facts.get(name) is not None}
        return made


def facts_of_vote(report: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and accuracies in the report of a vote, by the names of :data:`FACTS`.

    Example:
        >>> facts_of_vote({"parameters": 20, "dense_parameters": 80, "macs": 10, "dense_macs": 100})
        {'parameters': 20, 'macs': 10, 'parameters_kept': 0.25, 'macs_kept': 0.1}
    """
    sizes = {"parameters": report["parameters"], "macs": report["macs"]}
    kept = {f"{name}_kept": size / report[f"dense_{name}"] for name, size in sizes.items()}
    measured = {name: report[name] for name in ("val_accuracy", "test_accuracy") if name in report}
    return {**measured, **sizes, **kept}


def facts_of_entry(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """What a zoo entry that is there already says of itself, by the names of :data:`FACTS`; sizes are fractions.

    Args:
        name: of the entry.
        info: as the entry has it.

    Example:
        >>> facts_of_entry("pets--1a2b3c4d", {"val_accuracy": 0.5, "kept": {"params": 0.2, "macs": 0.1}})
        {'entry': 'pets--1a2b3c4d', 'val_accuracy': 0.5, 'parameters_kept': 0.2, 'macs_kept': 0.1}
    """
    kept = info.get("kept") or {}
    sizes = {"parameters_kept": kept.get("params"), "macs_kept": kept.get("macs")}
    return {"entry": name, "val_accuracy": info.get("val_accuracy"), **sizes}
