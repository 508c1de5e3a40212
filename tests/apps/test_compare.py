"""`mvp-compare` from nothing to a report; stopped, damaged and changed in all the ways that happen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lightning_mvp.study.methods import METHODS

from .conftest import TINY_COMPARE, Run, modified

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compare")]  # one process makes what several tests look at
SMOKE = ("experiment=study_smoke",)
RUNS = 2 * len(METHODS) + 2 + 1  # mvp@0 on both targets, taylor@20 on one
VARIANTS = 2 + 2 + 1
# pre-training and parent; sources and generic models; entries that grow; rankings of sources and their overlap;
# rankings of targets, runs, variants; two rankings of each development task, trials
PARTS = 2 + 6 + 3 + 5 + 6 + 1 + 2 + RUNS + VARIANTS + 2 * 2 + 2 * 5
SMALL = ("methods=[mvp,dense]", "split.sources=2", "split.targets=1")
PICTURES = {"accuracy.png", "leep.png", "overlap.png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def study(home: Path, run: Run) -> Path:
    """The finished study_smoke, of all stages and methods; tests that change it take a copy."""
    folder = home / "study_smoke"
    if not folder.exists():
        done = run("compare", *SMOKE, home=home)
        assert done.code == 0, done.text
        (home / "shown.txt").write_text(done.text)
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "study"))


def test_it_ends_with_a_table_a_report_every_run_and_pictures(study: Path) -> None:
    shown = (study.parent / "shown.txt").read_text()
    for label in METHODS.values():
        assert f"│ {label.short} " in shown
    for name in ("report.md", "results.json", *PICTURES):
        assert f"wrote {study / name}" in shown
    report = (study / "report.md").read_text()
    for label in METHODS.values():
        assert f"| {label.full} |" in report
    assert {path.name for path in study.glob("*.png")} == PICTURES
    for name in PICTURES:
        assert f"]({name})" in report
        with Image.open(study / name) as picture:
            assert min(picture.size) > 300
    lines = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    runs = [run for run in lines if run["task"].startswith("target") and run["steps"] not in (5, 6)]
    assert len([run for run in lines if run["task"].startswith("target")]) == RUNS + VARIANTS
    assert len(runs) == RUNS
    expected = {(method, 10) for method in METHODS} | {("mvp", 0)}
    every = {(*each, f"target-00{target}") for each in expected for target in range(2)}
    assert {(run["method"], run["steps"], run["task"]) for run in runs} == every | {("taylor", 20, "target-000")}
    assert all(run["seed"] == 0 and len(run["config"]) == 8 for run in runs)
    tried = {run["trial"]: run["changes"] for run in lines if run["task"].startswith("development")}
    assert len(tried) == 5
    assert tried["weighted"] == {"vote.temperature": 0.1}
    assert next(run["changes"] for run in runs if run["method"] == "mvp_refine") == {"vote.pruning_ratio": 0.15}
    assert "| `grown@5` | 5 | 2 |" in report
    results = json.loads((study / "results.json").read_text())
    assert {row["method"] for row in results["summary"]["0.5"]} == set(METHODS)
    assert len(results["overlap"]["study_smoke"]) == 3 * 9, "three rounds, six groups, two kinds and all"


def test_the_plan_and_its_time_come_first(study: Path) -> None:
    shown = (study.parent / "shown.txt").read_text()
    assert f"{PARTS} parts in" in shown
    assert "About" in shown
    assert f"for the other {PARTS} on this machine" in " ".join(shown.split())
    assert f"{PARTS} of {PARTS} parts done (100 %)" in shown


def test_its_terminal_holds_nothing_of_lightnings_own(study: Path) -> None:
    shown = (study.parent / "shown.txt").read_text()
    for noise in ("GPU available", "TPU available", "litlogger", "Tip:", "LeafSpec", "eval mode", "Warning"):
        assert noise not in shown


def test_running_it_again_computes_nothing(home: Path, study: Path, run: Run) -> None:
    before = {name: when for name, when in modified(study).items() if "/" in name}
    done = run("compare", *SMOKE, home=home)
    assert done.code == 0
    assert f"{PARTS} done already" in done.line
    assert {name: when for name, when in modified(study).items() if "/" in name} == before


def test_a_deleted_record_is_all_that_is_computed_again(home: Path, copy: Path, run: Run) -> None:
    record = copy / "runs" / "target-001--oneshot_magnitude@10.json"
    old, before = json.loads(record.read_text()), modified(copy / "runs")
    record.unlink()
    assert run("compare", *SMOKE, f"folder={copy}", home=home).code == 0
    after = modified(copy / "runs")
    assert {name for name in after if after[name] != before[name]} == {record.name}
    new = json.loads(record.read_text())
    assert new.keys() == old.keys()
    assert not [key for key in new if new[key] != old[key] and "seconds" not in key]


def test_other_settings_in_the_same_folder_are_refused_with_what_differs(home: Path, study: Path, run: Run) -> None:
    before = modified(study)
    done = run("compare", *SMOKE, "steps=5", home=home)
    assert done.code == 1
    assert (
        f"{study} holds a comparison with other settings, which is not overwritten: steps: there 10, now 5" in done.line
    )
    assert "Choose another `folder`, or remove that one." in done.line
    assert "Traceback" not in done.text
    assert modified(study) == before


def test_a_part_that_fails_is_named_and_finished_parts_stay(home: Path, copy: Path, run: Run) -> None:
    shutil.rmtree(copy / "zoo" / "tasks")
    for name in ("target-000--mvp@10", "target-000--dense@10"):
        (copy / "runs" / f"{name}.json").unlink()
    done = run("compare", *SMOKE, "workers=1", f"folder={copy}", home=home)
    assert done.code == 1
    assert f"Part target-000--mvp@10 failed: ValueError: The zoo at {copy}/zoo is empty." in done.line
    assert "Finished parts are kept; the same command goes on from there." in done.line
    assert "Traceback" not in done.text
    assert (copy / "runs" / "target-000--dense@10.json").exists(), "the longest comes first and was finished"


def test_killed_half_way_it_finishes_when_run_again(home: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "killed"
    overrides = [*TINY_COMPARE, *SMALL, f"folder={folder}"]
    environment = {**os.environ, "LIGHTNING_MVP_HOME": str(home)}
    command = [sys.executable, "-m", "lightning_mvp.apps.compare", *overrides]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "runs" / "source-000.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = modified(folder / "runs")
    done_parts = {name for name in before if name.endswith(".json")}
    assert "source-000.json" in done_parts
    assert len(done_parts) < 9, "something is left to do"
    assert run("compare", *overrides, home=home).code == 0
    after = modified(folder / "runs")
    parts = {name for name in after if name.endswith(".json") and not name.startswith(".")}
    assert len(parts - {"zoos.json"}) == 9
    assert all(after[name] == before[name] for name in done_parts)
    assert (folder / "report.md").exists()


def test_each_stage_runs_alone_and_asks_for_those_before_it(home: Path, tmp_path: Path, run: Run) -> None:
    common = (*TINY_COMPARE, *SMALL, f"folder={tmp_path / 'staged'}")
    refused = run("compare", *common, "stages=[compare]", home=home)
    assert refused.code == 1
    assert "Expected stage 'pretrain' to be done before 'compare', but 1 of its parts are missing" in refused.line
    assert "Run stages=[pretrain] first." in refused.line
    assert not (tmp_path / "staged").exists()
    for stage in ("pretrain", "zoo", "compare", "overlap", "report"):
        done = run("compare", *common, f"stages=[{stage}]", home=home)
        assert done.code == 0, done.text
    assert (tmp_path / "staged" / "report.md").exists()


def test_jobs_share_a_stage_through_a_launcher_and_a_pool_reports_them(home: Path, tmp_path: Path, run: Run) -> None:
    common = (*TINY_COMPARE, *SMALL, f"folder={tmp_path / 'shared'}")
    for stage in ("pretrain", "zoo", "compare"):
        shards = ("-m", "shards=2", "shard=0,1") if stage != "pretrain" else ()
        done = run("compare", *shards, *common, f"stages=[{stage}]", home=home)
        assert done.code == 0, done.text
    runs = {path.stem for path in (tmp_path / "shared" / "runs").glob("*.json")}
    assert {"pretrain", "source-000", "source-001", "target-000--mvp@4", "target-000--dense@4"} <= runs
    pool = f"pool=[{tmp_path / 'shared'}]"
    done = run("compare", *TINY_COMPARE, f"folder={tmp_path / 'report'}", pool, "stages=[report]", home=home)
    assert done.code == 0, done.text
    assert "Meta-Vote Pruning" in (tmp_path / "report" / "report.md").read_text()


def test_a_stage_that_does_not_exist_is_refused(home: Path, tmp_path: Path, run: Run) -> None:
    done = run("compare", *TINY_COMPARE, f"folder={tmp_path / 'none'}", "stages=[zoo,bake]", home=home)
    assert done.code == 1
    assert "Expected argument `stages` to be some of pretrain, zoo, grow, overlap, compare, ablate, report" in done.line
    assert not (tmp_path / "none").exists()


def test_another_study_takes_its_zoo_and_one_page_sums_both_up(
    study: Path, home: Path, run: Run, tmp_path: Path
) -> None:
    second, page = tmp_path / "second", tmp_path / "page"
    other = ("target_kind=heldout", "split.held_out_targets=2", "images_per_class=5", "label=held-out")
    less = ("methods=[mvp,nearest]", "stages=[compare,report]")
    done = run("compare", *SMOKE, f"zoo_of={study}", f"folder={second}", *other, *less, home=home)
    assert done.code == 0, done.text
    assert "held out of pre-training and zoo, 5 training images of each class" in (second / "report.md").read_text()
    runs = [json.loads(line) for line in (second / "results.jsonl").read_text().splitlines()]
    assert {run["task"] for run in runs} == {"heldout-000", "heldout-001"}
    assert all(run["evidence"]["label_entropy"] == pytest.approx(1.609, abs=1e-3) for run in runs if "evidence" in run)
    done = run("compare", "stages=[report]", f"reports=[{study},{second}]", f"folder={page}", home=home)
    assert done.code == 0, done.text
    text = (page / "report.md").read_text()
    assert "| study_smoke | 2 |" in text
    assert "| held-out | 2 |" in text
    assert f"wrote {page / 'differences.png'}" in done.text
    done = run("compare", "stages=[report]", f"reports=[{tmp_path}]", f"folder={page}", home=home)
    assert done.code == 1
    assert "found no results.jsonl" in done.text
