"""Settings, the plan of parts, and records that are written once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mvp.study.compare import plan
from lightning_mvp.study.parts import curve_steps
from lightning_mvp.study.records import open_study, read_record, record_path, write_record
from lightning_mvp.study.settings import METHODS, StudySettings

from .workshop import settings


def test_a_record_reads_back_and_the_first_one_stays(tmp_path: Path) -> None:
    assert read_record(tmp_path, "pretrain") is None
    write_record(tmp_path, "pretrain", {"seconds": 1.5})
    write_record(tmp_path, "pretrain", {"seconds": 9.0})
    assert read_record(tmp_path, "pretrain") == {"seconds": 1.5}
    assert list(record_path(tmp_path, "pretrain").parent.iterdir()) == [record_path(tmp_path, "pretrain")]


def test_a_study_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    open_study(tmp_path, settings())
    before = (tmp_path / "settings.json").stat().st_mtime_ns
    open_study(tmp_path, settings())
    assert (tmp_path / "settings.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_with_what_differs_and_nothing_else(tmp_path: Path) -> None:
    open_study(tmp_path, settings())
    with pytest.raises(FileExistsError) as refused:
        open_study(tmp_path, settings(steps=5, seed=1))
    lines = str(refused.value).splitlines()
    assert lines[1:3] == ["  seed: there 0, now 1", "  steps: there 4, now 5"]
    assert lines[3] == "Choose another `folder`, or remove that one."
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 4


def test_settings_survive_json() -> None:
    plain = json.loads(json.dumps(settings().to_dict()))
    assert StudySettings(**{**plain, "methods": tuple(plain["methods"])}) == settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("mvp", "magic")}, r"`methods` to be names out of mvp, .*but got \['mvp', 'magic'\]"),
        ({"methods": ()}, r"`methods` .*but got \[\]"),
        ({"steps": 0}, "`steps` to be an integer of at least 1, but got 0"),
        ({"source_steps": 2.5}, "`source_steps` to be an integer of at least 1, but got 2.5"),
        ({"pruning": {"pruning_ratio": 1.0}}, r"`pruning_ratio` to be a float in \(0, 1\), but got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_the_plan_has_every_part_once_in_stages_with_the_longest_first() -> None:
    pretrain, zoo, targets = plan(settings(split={"sources": 3, "targets": 2}))
    assert [part.name for part in pretrain] == ["pretrain"]
    assert [part.name for part in zoo] == ["source-000", "source-001", "source-002", "generic"]
    assert sorted(part.name for part in targets) == sorted(f"target-00{t}--{m}" for t in range(2) for m in METHODS)
    assert [part.cost for part in targets] == sorted((part.cost for part in targets), reverse=True)
    assert {part.name.partition("--")[2] for part in targets[:4]} == {"dense_10x", "taylor_10x"}


def test_without_generic_nothing_is_pruned_on_all_classes() -> None:
    _, zoo, targets = plan(settings(methods=("mvp",)))
    assert [part.name for part in zoo] == ["source-000", "source-001", "source-002"]
    assert [part.name for part in targets] == ["target-000--mvp"]


@pytest.mark.parametrize("steps", [1, 2, 3, 40, 100, 400, 1000])
def test_the_curve_starts_before_the_first_step_and_ends_after_the_last(steps: int) -> None:
    points = curve_steps(steps)
    assert points[0] == 0
    assert points[-1] == steps
    assert points == sorted(set(points))
    assert len(points) <= 6
