"""No val or test image is ever seen by what learns or chooses: other ones change the measured accuracy and no bit else.

Each part of a study runs twice in this process, from one train part and two different val and test parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.study import study_context
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.plan import plan
from lightning_mvp.study.records import read_record
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.partition import Part
from lightning_mvp.training.task import TaskModule
from lightning_mvp.zoo.zoo import ModelZoo

from .small_study import images_of, in_memory, noise, settings

MEASURED = {"accuracy", "curve", "val_accuracy", "start_accuracy"}
TIMED = {"seconds", "start_seconds", "fit_seconds", "stage_seconds"}


class Watched(PartRunner):
    """A runner that remembers the weights before and after every fit."""

    def __init__(self, folder: Path) -> None:
        parent = {"pruning_ratio": 0.4, "steps": 4, "rounds": 2}
        grown: dict[str, Any] = {
            "growths": {"A": {"seeds": 2, "tasks": 1, "neighbours": 2, "steps": 2}},
            "tuned": {"grown": {"vote.growth": "A", "vote.entries": 3}},
        }
        super().__init__(folder, settings(methods=tuple(METHODS), parent=parent, **grown))
        self.weights: list[tuple[str, str]] = []

    def fit(self, module: TaskModule, data: TaskDataModule, steps: int, *callbacks: Any, **options: Any) -> None:
        before = fingerprint(module.state_dict())
        super().fit(module, data, steps, *callbacks, **options)
        self.weights.append((before, fingerprint(module.state_dict())))

    def _cut(self, module: TaskModule, *arguments: Any) -> TaskModule:
        before = fingerprint(module.state_dict())
        small = super()._cut(module, *arguments)
        self.weights.append((before, fingerprint(small.state_dict())))
        return small


def study(folder: Path, val: Part, test: Part, patch: pytest.MonkeyPatch) -> Watched:
    patch.setattr(study_context, "load_data", lambda **_: in_memory(val, test))
    runner = Watched(folder)
    for name in part_names(runner):
        runner.run(name)
    return runner


def part_names(runner: Watched) -> list[str]:
    return [part.name for stage in plan(runner.settings).values() for wave in stage for part in wave]


# Lightning's own, about its call of torch.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, Watched]:
    """The same study with honest and with meaningless val and test images."""
    with pytest.MonkeyPatch.context() as patch:
        honest = study(tmp_path_factory.mktemp("honest"), images_of(4, seed=1), images_of(6, seed=2), patch)
        poisoned = study(tmp_path_factory.mktemp("poisoned"), noise(4, seed=3), noise(6, seed=4), patch)
    return honest, poisoned


def records(runner: Watched) -> dict[str, dict[str, Any]]:
    found = {name: read_record(runner.folder, name) for name in part_names(runner)}
    return {name: record for name, record in found.items() if record is not None}


def test_every_part_of_every_method_ran(twins: tuple[Watched, Watched]) -> None:
    names = set(records(twins[0]))
    assert {f"target-000--{method}@4" for method in METHODS} <= names
    trained = {name for name in names if not name.startswith(("rank", "overlap"))}
    assert len(trained) == 2 + 3 + 3 + 1 + len(METHODS)
    assert len(twins[0].weights) == len(trained) - 1, "a zoo grows by a fit of its own"


def test_pre_training_gives_the_same_bytes(twins: tuple[Watched, Watched]) -> None:
    honest, poisoned = (runner.theta0_path.read_bytes() for runner in twins)
    assert honest == poisoned


@pytest.mark.parametrize("folder", ["zoo", "generic"])
def test_zoo_entries_are_equal_bit_by_bit(twins: tuple[Watched, Watched], folder: str) -> None:
    honest, poisoned = (ModelZoo(runner.folder / folder) for runner in twins)
    assert honest.names == poisoned.names
    assert len(honest) == (3 if folder == "zoo" else 1)
    for name in honest:
        ours, theirs = honest[name], poisoned[name]
        assert ours.prototypes is not None
        for attribute in ("masks", "weights", "importance", "head"):
            assert fingerprint(getattr(ours, attribute)) == fingerprint(getattr(theirs, attribute)), attribute
        assert fingerprint({"prototypes": ours.prototypes}) == fingerprint({"prototypes": theirs.prototypes})
        assert (ours.facts, ours.config) == (theirs.facts, theirs.config)


def test_all_weights_before_and_after_fine_tuning_are_equal(twins: tuple[Watched, Watched]) -> None:
    honest, poisoned = twins
    assert honest.weights == poisoned.weights
    assert all(before != after for before, after in honest.weights)
    assert len(set(honest.weights)) > len(METHODS), "nearly every fit is one of its own"


def test_rankings_votes_and_widths_are_equal(twins: tuple[Watched, Watched]) -> None:
    honest, poisoned = map(records, twins)
    for name, record in honest.items():
        chosen = {key: value for key, value in record.items() if key not in MEASURED | TIMED}
        assert chosen == {key: value for key, value in poisoned[name].items() if key in chosen}, name
    assert {"neighbours", "shares", "widths"} <= set(honest["target-000--mvp@4"])
    assert "similarities" in honest["rank--target-000"]
    assert "masks" in honest["target-000--taylor@4"]


def test_only_the_measured_accuracy_differs(twins: tuple[Watched, Watched]) -> None:
    honest, poisoned = map(records, twins)
    for measured in ("dense", "mvp"):
        assert honest[f"target-000--{measured}@4"]["accuracy"] != poisoned[f"target-000--{measured}@4"]["accuracy"]
    assert honest["pretrain"]["val_accuracy"] != poisoned["pretrain"]["val_accuracy"]
