"""Studies read back from their folders, each run with its zoo and operating point, so that they can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_mvp.study.methods import METHODS, Trial
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.records import rank_part, read_record, read_records, read_settings
from lightning_mvp.study.results import break_even
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.zoo.entry import config_hash


@dataclass(frozen=True)
class Study:
    """A study of one zoo at one operating point.

    Args:
        folder: the folder of its records.
        settings: the settings it was made with.
    """

    folder: Path
    settings: StudySettings

    @classmethod
    def read(cls, folder: Path) -> Study:
        """The study of a folder.

        Raises:
            FileNotFoundError: there is none.
        """
        return cls(folder, read_settings(folder))

    @property
    def draw(self) -> int:
        return self.settings.split.get("draw", 0)

    @property
    def ratio(self) -> float:
        return self.settings.pruning_ratio

    @property
    def shares_parent(self) -> bool:
        return self.settings.parent is not None

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """The runs on targets that are done, each with its zoo's draw, the ratio, and the hash of the settings."""
        return [{**self._facts, **self._evidence(run), **run} for run in self._on_targets(self.settings.compared())]

    @cached_property
    def varied(self) -> list[dict[str, Any]]:
        """The runs of variants on targets that are done, variant by variant."""
        return [{**self._facts, "variant": True, **run} for run in self._on_targets(self.settings.varied())]

    @property
    def _facts(self) -> dict[str, Any]:
        return {
            "draw": self.draw,
            "pruning_ratio": self.ratio,
            "zoo": "parent" if self.shares_parent else "theta0",
            "config": config_hash(self.settings.to_dict()),
            "label": self.settings.label,
        }

    def _on_targets(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        return self.records(f"{target}--{trial.name}" for trial in trials for target in self.targets)

    def _evidence(self, run: dict[str, Any]) -> dict[str, Any]:
        """What LEEP said of the zoo before a vote; empty where it was not asked."""
        ranking = self.record(rank_part(run["task"], "leep")) if run["method"] == "mvp" else None
        return {"evidence": ranking["evidence"]} if ranking and "evidence" in ranking else {}

    def record(self, part: str) -> dict[str, Any] | None:
        """The record of a part, if it is done."""
        return read_record(self.folder, part)

    def records(self, parts: Iterable[str]) -> list[dict[str, Any]]:
        """The records of those parts that are done."""
        return read_records(self.folder, parts)

    def beginning(self, part: str) -> dict[str, Any] | None:
        """The record of θ⁰ (``pretrain``) or of the zoo's ``parent``, which another study may have made."""
        return read_record(Path(self.settings.home or self.folder), part)

    @property
    def targets(self) -> list[str]:
        """The names of its new tasks."""
        return [self.settings.target(index) for index in range(self.settings.targets)]

    @property
    def break_even(self) -> float | None:
        """The number of new tasks that repay this zoo; None where another study made it."""
        return break_even(self.zoo_seconds, self.runs) if self.owns_zoo else None

    @property
    def owns_zoo(self) -> bool:
        """Whether its zoo is its own, and not another study's."""
        return self.settings.zoo_of is None

    @property
    def zoo_seconds(self) -> float:
        """The seconds that the zoo's entries and their parent took."""
        parent = self.beginning("parent")
        return sum(record["seconds"] for record in (*self.sources, *([parent] if parent else [])))

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The records of the zoo's entries that are done."""
        return self.records(self.settings.sources)

    @cached_property
    def grown(self) -> dict[str, list[dict[str, Any]]]:
        """Growth → the records of the entries that joined, in their order."""
        tasks = {name: range(self.settings.growth(name).tasks) for name in self.settings.growths}
        return {name: self.records(f"grow-{name}-{index:03d}" for index in every) for name, every in tasks.items()}

    @property
    def rankings(self) -> list[dict[str, Any]]:
        """The zoo's similarity to each target, and how many ``classes`` that has."""
        similarity, classes = self.settings.vote.get("similarity", "leep"), self.settings.split["classes_per_task"]
        records = self.records(rank_part(target, similarity) for target in self.targets)
        return [{**record, "classes": classes} for record in records]

    @property
    def overlap(self) -> list[OverlapRow]:
        """What the masks of all pairs of zoo tasks have in common, if that is done."""
        record = self.record("overlap")
        return [] if record is None else [OverlapRow(**row) for row in record["rows"]]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All runs on development tasks, measured on validation images, those of the present trials first."""
        place = {trial.name: number for number, trial in enumerate(self.settings.tried())}
        paths = (self.folder / "runs").glob("development-*--*.json")
        runs = [{"label": self.settings.label, **json.loads(path.read_text())} for path in paths]
        return sorted(runs, key=lambda run: (place.get(run["trial"], len(place)), run["trial"], run["task"]))

    @property
    def all_runs(self) -> list[dict[str, Any]]:
        """The records of all runs on targets and development tasks, and of each entry by which a zoo grew."""
        return [*self.runs, *self.varied, *self.trials, *(entry for grown in self.grown.values() for entry in grown)]


def by_label(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Label → runs. Studies without a label have ``""``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run.get("label", ""), []).append(run)
    return found


def ratios(runs: Sequence[dict[str, Any]]) -> list[float]:
    """The operating points of runs on targets, the mildest first."""
    return sorted({run["pruning_ratio"] for run in runs})


def runs_at(runs: Sequence[dict[str, Any]], ratio: float) -> list[dict[str, Any]]:
    """All runs at an operating point, and the dense ones of the same targets at any.

    Where zoos with and without a parent are compared, runs from a zoo whose entries began with θ⁰ have ``zoo`` set to
    ``theta0``. A method that needs no zoo counts once for each target.

    Args:
        runs: of studies of one kind, as :attr:`Study.runs` and the lines of ``results.jsonl`` about targets are.
        ratio: the operating point.
    """
    at = [run for run in runs if run["pruning_ratio"] == ratio or METHODS[run["method"]].kind == "dense"]
    of_zoos = [run for run in at if METHODS[run["method"]].kind == "zoo"]
    both = len({run["zoo"] for run in of_zoos}) > 1
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in sorted(at, key=lambda run: run["zoo"] != "parent"):
        zoo = "theta0" if both and METHODS[run["method"]].kind == "zoo" and run["zoo"] == "theta0" else ""
        key = (zoo, run["method"], run["steps"], run["draw"], run["task"])
        found.setdefault(key, {**run, "zoo": zoo})
    return list(found.values())
