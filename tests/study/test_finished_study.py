"""Runs of several studies side by side: what needs no zoo counts once, dense ones at every operating point."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mvp.study.finished_study import Study, ratios, runs_at
from lightning_mvp.study.records import open_study, write_record

from .small_study import settings


def run_of(method: str, ratio: float, zoo: str = "parent", draw: int = 0, accuracy: float = 0.5) -> dict[str, object]:
    facts = {"method": method, "pruning_ratio": ratio, "zoo": zoo, "draw": draw, "accuracy": accuracy}
    return {**facts, "steps": 100, "task": "target-000"}


def found(runs: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {(run["method"], run["zoo"], run["draw"], run["accuracy"]) for run in runs}


def test_dense_runs_count_at_every_operating_point_and_others_at_their_own() -> None:
    runs = [run_of("mvp", 0.5), run_of("mvp", 0.7), run_of("dense", 0.5)]
    assert ratios(runs) == [0.5, 0.7]
    assert found(runs_at(runs, 0.7)) == {("mvp", "", 0, 0.5), ("dense", "", 0, 0.5)}


def test_a_target_that_two_studies_have_in_common_is_counted_once() -> None:
    runs = [run_of("taylor", 0.5), run_of("taylor", 0.5, "theta0", accuracy=0.6), run_of("taylor", 0.5, draw=1)]
    assert found(runs_at(runs, 0.5)) == {("taylor", "", 0, 0.5), ("taylor", "", 1, 0.5)}


def test_zoos_of_two_kinds_are_told_apart_and_one_kind_needs_no_name() -> None:
    plain, kin = run_of("mvp", 0.5, "theta0", accuracy=0.4), run_of("mvp", 0.5)
    assert found(runs_at([plain, kin], 0.5)) == {("mvp", "theta0", 0, 0.4), ("mvp", "", 0, 0.5)}
    assert found(runs_at([plain], 0.5)) == {("mvp", "", 0, 0.4)}


def test_a_study_reads_back_its_runs_and_publishes_every_trial(tmp_path: Path) -> None:
    trials = {"hot": {"vote.temperature": 1.0}}
    open_study(tmp_path, settings(methods=("mvp",), trials=trials))
    write_record(tmp_path, "target-000--mvp@4", {"method": "mvp", "task": "target-000"})
    for name in ("dropped", "hot"):
        write_record(tmp_path, f"development-000--{name}", {"trial": name, "task": "development-000"})
    study = Study.read(tmp_path)
    (run,) = study.runs
    assert (run["draw"], run["pruning_ratio"], run["zoo"]) == (0, 0.7, "theta0")
    assert [run["trial"] for run in study.trials] == ["hot", "dropped"]


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a study in .*, but found no settings.json. Run mvp-compare first"):
        Study.read(tmp_path)
