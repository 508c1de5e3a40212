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

from lightning_mvp.study.settings import METHODS

from .conftest import TINY_COMPARE, Run, modified

pytestmark = pytest.mark.xdist_group("compare")  # one process makes what several tests look at
ALL = f"methods=[{','.join(METHODS)}]"
SMALL = ("methods=[mvp,dense]", "split.sources=2", "split.targets=1")
PICTURES = {"accuracy.png", "leep.png", "overlap.png", "widths.png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def study(home: Path, run: Run) -> Path:
    """A finished comparison of all ten methods; tests that change it take a copy."""
    folder = home / "compare" / "glyphs"
    if not folder.exists():
        done = run("compare", *TINY_COMPARE, ALL, home=home)
        assert done.code == 0, done.text
        (home / "shown.txt").write_text(done.text)
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "study"))


def test_it_ends_with_a_table_a_report_every_run_and_pictures(study: Path) -> None:
    shown = (study.parents[1] / "shown.txt").read_text()
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
    results = json.loads((study / "results.json").read_text())
    assert len(results["runs"]) == 2 * len(METHODS)
    assert {(run["method"], run["task"]) for run in results["runs"]} == {
        (method, f"target-00{target}") for method in METHODS for target in range(2)
    }
    assert all(run["seed"] == 0 for run in results["runs"])
    assert {run["method"]: run["steps"] for run in results["runs"]} == {
        method: 40 if method.endswith("_10x") else 4 for method in METHODS
    }


def test_its_terminal_holds_nothing_of_lightnings_own(study: Path) -> None:
    shown = (study.parents[1] / "shown.txt").read_text()
    for noise in ("GPU available", "TPU available", "litlogger", "Tip:", "LeafSpec", "eval mode", "Warning"):
        assert noise not in shown


def test_running_it_again_computes_nothing(home: Path, study: Path, run: Run) -> None:
    before = {name: when for name, when in modified(study).items() if "/" in name}
    done = run("compare", *TINY_COMPARE, ALL, home=home)
    assert done.code == 0
    assert "25 done already" in done.line
    assert {name: when for name, when in modified(study).items() if "/" in name} == before


def test_a_deleted_record_is_all_that_is_computed_again(home: Path, copy: Path, run: Run) -> None:
    record = copy / "runs" / "target-001--oneshot_magnitude.json"
    old, before = json.loads(record.read_text()), modified(copy / "runs")
    record.unlink()
    assert run("compare", *TINY_COMPARE, ALL, f"folder={copy}", home=home).code == 0
    after = modified(copy / "runs")
    assert {name for name in after if after[name] != before[name]} == {record.name}
    new = json.loads(record.read_text())
    assert new.keys() == old.keys()
    assert not [key for key in new if new[key] != old[key] and "seconds" not in key]


def test_other_settings_in_the_same_folder_are_refused_with_what_differs(home: Path, study: Path, run: Run) -> None:
    before = modified(study)
    done = run("compare", *TINY_COMPARE, ALL, "steps=5", home=home)
    assert done.code == 1
    assert (
        f"{study} holds a comparison with other settings, which is not overwritten: steps: there 4, now 5" in done.line
    )
    assert "Choose another `folder`, or remove that one." in done.line
    assert "Traceback" not in done.text
    assert modified(study) == before


def test_a_part_that_fails_is_named_and_finished_parts_stay(home: Path, copy: Path, run: Run) -> None:
    shutil.rmtree(copy / "zoo" / "tasks")
    for name in ("target-000--mvp", "target-000--dense_10x"):
        (copy / "runs" / f"{name}.json").unlink()
    done = run("compare", *TINY_COMPARE, ALL, f"folder={copy}", home=home)
    assert done.code == 1
    assert f"Part target-000--mvp failed: ValueError: The zoo at {copy}/zoo is empty." in done.line
    assert "Finished parts are kept; the same command goes on from there." in done.line
    assert "Traceback" not in done.text
    assert (copy / "runs" / "target-000--dense_10x.json").exists(), "the longest comes first and was finished"


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
    assert len(done_parts) < 5, "something is left to do"
    assert run("compare", *overrides, home=home).code == 0
    after = modified(folder / "runs")
    assert len({name for name in after if name.endswith(".json") and not name.startswith(".")}) == 5
    assert all(after[name] == before[name] for name in done_parts)
    assert (folder / "report.md").exists()
