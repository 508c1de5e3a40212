"""Settings, the plan of parts, and records that are written once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mvp.study.part_runner import curve_steps
from lightning_mvp.study.plan import parts_of_shard, plan
from lightning_mvp.study.records import open_study, read_record, record_path, write_record
from lightning_mvp.study.study_settings import StudySettings

from .small_study import settings


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
    assert StudySettings.from_dict(plain) == settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("mvp", "magic")}, "a method such as mvp or taylor@1000, out of mvp, .*but got 'magic'"),
        ({"methods": ("mvp@ten",)}, "a method such as mvp or taylor@1000, .*but got 'mvp@ten'"),
        ({"methods": ()}, "`methods` to name at least one method"),
        ({"methods": ("taylor@0",)}, "taylor to have steps, but got taylor@0"),
        ({"trials": {"hot": {"temperature": 1}}}, r"a trial to change `vote.…`, .* but got 'temperature'"),
        ({"tuned": {"magic": {}}}, "a method such as mvp .*but got 'magic'"),
        ({"trials": {"a/b": {}}}, "name of a trial to be of letters, .* but got 'a/b'"),
        ({"fewer": {"magic": 1}}, "a method such as mvp .*but got 'magic'"),
        ({"parent": {"pruning_ratio": 0.4}}, "`parent` to give pruning_ratio and steps"),
        ({"parent": {"pruning_ratio": 0.7, "steps": 5}}, "`parent.pruning_ratio` to be below .*=0.7"),
        ({"steps": 0}, "`steps` to be an integer of at least 1, but got 0"),
        ({"source_steps": 2.5}, "`source_steps` to be an integer of at least 1, but got 2.5"),
        ({"pruning": {"pruning_ratio": 1.0}}, r"`pruning_ratio` to be a float in \(0, 1\), but got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_methods_and_trials_may_be_added_and_other_made_runs_are_refused(tmp_path: Path) -> None:
    open_study(tmp_path, settings(methods=("mvp",)))
    more = settings(methods=("mvp", "dense@8"), trials={"hot": {"vote.temperature": 1.0}})
    open_study(tmp_path, more)
    assert json.loads((tmp_path / "settings.json").read_text())["methods"] == ["mvp", "dense@8"]
    made = {"method": "mvp", "steps": 4, "changes": {}}
    write_record(tmp_path, "target-000--mvp@4", made)
    open_study(tmp_path, more)
    with pytest.raises(FileExistsError, match=r"target-000--mvp@4\.json was made with .* now it would be made with"):
        open_study(tmp_path, settings(methods=("mvp",), tuned={"mvp": {"optim.learning_rate": 0.3}}))


def test_the_plan_has_every_part_once_in_waves_with_the_longest_first() -> None:
    stages = plan(settings(split={"sources": 3, "targets": 2}, methods=("mvp", "generic", "dense@40", "taylor@40")))
    names = {stage: [[part.name for part in wave] for wave in waves] for stage, waves in stages.items()}
    assert names["pretrain"] == [["pretrain"]]
    assert sorted(names["zoo"][0]) == ["generic", "source-000", "source-001", "source-002"]
    assert names["overlap"] == [[f"rank--source-00{index}" for index in range(3)], ["overlap"]]
    ranks, runs = names["compare"]
    assert ranks == ["rank--target-000", "rank--target-001"]
    methods = ("mvp@4", "generic@4", "dense@40", "taylor@40")
    assert sorted(runs) == sorted(f"target-00{t}--{method}" for t in range(2) for method in methods)
    costs = [part.cost for part in stages["compare"][1]]
    assert costs == sorted(costs, reverse=True)
    assert {name.partition("--")[2] for name in runs[:2]} == {"dense@40"}
    assert names["ablate"] == []


def test_a_trial_with_another_similarity_has_a_ranking_of_its_own() -> None:
    trials = {"plain": {}, "cover": {"vote.similarity": "cover"}, "dense": {"method": "dense"}}
    split = {"sources": 3, "targets": 2, "development": 1}
    ranks, runs = plan(settings(split=split, methods=("dense",), trials=trials))["ablate"]
    assert sorted(part.name for part in ranks) == ["rank--development-000", "rank-cover--development-000"]
    assert sorted(part.name for part in runs) == [f"development-000--{name}" for name in ("cover", "dense", "plain")]


def test_the_shards_of_a_stage_have_each_part_once_and_a_task_whole() -> None:
    waves = plan(settings(split={"sources": 5, "targets": 4}, methods=("mvp", "dense@40")))["compare"]
    for wave in waves:
        shards = [{part.name for part in parts_of_shard(wave, shard, 3)} for shard in range(3)]
        assert set().union(*shards) == {part.name for part in wave}
        assert sum(map(len, shards)) == len(wave)
    for shard in range(3):
        ranks, runs = (parts_of_shard(wave, shard, 3) for wave in waves)
        tasks = {part.name.split("-")[-1] for part in ranks}
        assert tasks == {part.name.partition("--")[0].split("-")[-1] for part in runs}


def test_an_entry_removes_of_its_parent_what_the_parent_has_left_over() -> None:
    study = settings(parent={"pruning_ratio": 0.4, "steps": 5})
    assert study.entry_ratio == 0.5
    assert study.zoo_steps == 5 + 3 * 4
    assert settings().entry_ratio == 0.7


@pytest.mark.parametrize("steps", [1, 2, 3, 40, 100, 400, 1000])
def test_the_curve_starts_before_the_first_step_and_ends_after_the_last(steps: int) -> None:
    points = curve_steps(steps)
    assert points[0] == 0
    assert points[-1] == steps
    assert points == sorted(set(points))
    assert len(points) <= 6
