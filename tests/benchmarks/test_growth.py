"""The two benchmarks of zoos that grow by use run on a study of seconds; what they find there means nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.plan import plan
from lightning_mvp.study.records import open_study
from lightning_mvp.study.study_settings import StudySettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    settings = StudySettings(
        data={"name": "glyphs", "characters": "ABDEHKMN", "per_class_train": 8, "per_class_val": 2},
        split={"classes_per_task": 3, "sources": 5, "targets": 1, "held_out_fraction": 0.0},
        recipe={
            "in_chans": 3,
            "model": "resnet18",
            "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24]},
            "input_size": 32,
        },
        pretrain={"steps": 4, "batch_size": 16},
        pruning={"pruning_ratio": 0.5, "rounds": 2},
        parent={"pruning_ratio": 0.2, "rounds": 2, "steps": 4},
        optim={"learning_rate": 0.02},
        source_steps=4,
        batch_size=10,
        methods=("mvp@2",),
        precision="32-true",
        entries=3,
        growths={"A": {"seeds": 3, "tasks": 2, "neighbours": 2, "steps": 2}},
        variants={
            "grown-5.A@2": {"method": "grown@2", "vote.growth": "A", "vote.entries": 5, "optim.mimic": 2},
            "taylor-mimic@1000": {"method": "taylor@4", "optim.mimic": 2},
        },
    )
    open_study(folder, settings)
    runner = PartRunner(folder, settings)
    stages = plan(replace(settings, methods=("grown@2",), tuned={"grown": {"vote.growth": "A", "vote.entries": 5}}))
    for part in chain(*(wave for stage in ("pretrain", "zoo", "grow") for wave in stages[stage])):
        runner.run(part.name)
    for name in settings.variants:
        runner.run(f"target-000--{name}")
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_budgets_count_what_each_step_passes(study: Path, script: None, tmp_path: Path):
    import growth_budgets

    assert growth_budgets.main([str(study), "--out", str(tmp_path), "--entries", "5"]) == 0
    found = json.loads((tmp_path / "budgets.json").read_text())
    runner = PartRunner(study, growth_budgets.study_settings(study, None))
    parent = runner.zoo_origin.measure(None)["macs"]
    own = json.loads((study / "runs" / "target-000--grown-5.A@2.json").read_text())["macs"]
    assert found["targets"]["grown-5.A@2"]["macs"] * 1e12 == pytest.approx(2 * 10 * (3 * own + parent))
    dense = 4 * 10 * 4 * runner.theta0.measure(None)["macs"]
    assert 0 < found["targets"]["taylor-mimic@1000"]["macs"] * 1e12 < dense
    assert found["before"]["the parent"]["steps"] == 4


def test_drift_is_measured_in_zoos_of_its_own(study: Path, script: None, tmp_path: Path):
    import growth_drift

    before = sorted(str(path) for path in study.rglob("*"))
    options = ["--entries", "4", "--targets", "1", "--steps", "2", "--out", str(tmp_path)]
    assert growth_drift.main([str(study), *options]) == 0
    found = json.loads((tmp_path / "drift.json").read_text())
    assert set(found) == {"another domain in between", "drift", "renewal", "masks"}
    assert all(len(kind["after"]) == 1 for states in found["drift"].values() for kind in states.values())
    assert sorted(str(path) for path in study.rglob("*") if "groups" not in path.name) == before
