"""Studies that build on another's zoo: other targets, other similarity, other weights on the vote's masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_mvp.study import check_study, study_context
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.plan import plan
from lightning_mvp.study.records import open_study, read_record, write_record
from lightning_mvp.study.run_study import _require_other_study, run_study
from lightning_mvp.study.starting_points import StartingPoints
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.zoo.rebuild import entry_masks
from lightning_mvp.zoo.zoo import ModelZoo

from .small_study import images_of, in_memory, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: found)
    monkeypatch.setattr(check_study, "load_data", lambda **_: found)


@pytest.fixture
def first(tmp_path: Path) -> PartRunner:
    """A study with a zoo of three, tasks of two of the three classes that are not held out."""
    split = {"classes_per_task": 2, "sources": 2, "targets": 1, "held_out_fraction": 0.5}
    runner = PartRunner(tmp_path / "first", settings(methods=("mvp",), split=split))
    open_study(runner.folder, runner.settings)
    for part in ("pretrain", "source-000", "source-001", "rank--target-000"):
        runner.run(part)
    return runner


def on_it(first: PartRunner, **changes: object) -> StudySettings:
    split = {**first.settings.split, "sources": 0, "held_out_targets": 1}
    options = {"methods": ("mvp",), "split": split, "zoo_of": str(first.folder), **changes}
    return settings(**options)


def test_held_out_targets_with_few_images_are_ranked_by_the_other_studys_zoo(first: PartRunner, tmp_path: Path) -> None:
    own = on_it(first, target_kind="heldout", images_per_class=2)
    runner = PartRunner(tmp_path / "second", own)
    names = [part.name for wave in plan(own)["compare"] for part in wave]
    assert names == ["rank--heldout-000", "heldout-000--mvp@4"]
    for name in names:
        runner.run(name)
    record = read_record(runner.folder, "heldout-000--mvp@4")
    assert record is not None
    assert set(record["classes"]) < set(runner.split.held_out)
    assert runner.split.held_out == first.split.held_out
    assert {each["name"] for each in record["neighbours"]} <= {
        entry.name for entry in ModelZoo(first.folder / "zoo").entries()
    }
    task = runner.split.get("heldout", 0)
    assert runner.datamodule(task).train_images()[1].bincount().tolist() == [2, 2]
    assert not (runner.folder / "zoo").exists()
    assert not (runner.folder / "theta0.safetensors").exists()


def test_a_study_is_refused_whose_zoo_is_not_finished_or_is_another(first: PartRunner, tmp_path: Path) -> None:
    own = on_it(first)
    run = {"workers": 1, "stages": ["compare"]}
    with pytest.raises(
        ValueError,
        match=r"source_steps, new_images, entries, growths, but got source_steps: 4 there, 5",
    ):
        run_study(tmp_path / "second", replace(own, source_steps=5), **run)
    with pytest.raises(FileNotFoundError, match=r"no settings\.json"):
        run_study(tmp_path / "second", replace(own, zoo_of=str(tmp_path / "none")), **run)
    with pytest.raises(ValueError, match=r"hold out the same classes, but got split\.seed: None there, 1 here"):
        run_study(tmp_path / "second", replace(own, split={**own.split, "seed": 1}), **run)
    (first.folder / "runs" / "source-001.json").unlink()
    with pytest.raises(ValueError, match="lacks 1 parts, first 'source-001'"):
        run_study(tmp_path / "second", own, **run)
    assert not (tmp_path / "second").exists()
    with pytest.raises(ValueError, match="`zoo_of` without `begins_with`"):
        replace(own, begins_with="elsewhere")


def test_a_study_that_begins_with_anothers_backbone_prunes_a_zoo_of_its_own(first: PartRunner, tmp_path: Path) -> None:
    own = settings(methods=("mvp",), begins_with=str(first.folder), split={**first.settings.split, "sources": 1})
    runner = PartRunner(tmp_path / "second", own)
    assert plan(own)["pretrain"] == []
    _require_other_study(first.folder, own)
    runner.run("source-000")
    assert runner.theta0_path == first.theta0_path
    assert len(ModelZoo(runner.folder / "zoo")) == 1


def test_settings_of_older_studies_are_those_with_the_defaults_of_today(first: PartRunner) -> None:
    path = first.folder / "settings.json"
    older = json.loads(path.read_text())
    for name in ("zoo_of", "begins_with", "target_kind", "images_per_class", "label"):
        del older[name]
    path.write_text(json.dumps(older))
    open_study(first.folder, first.settings)


def test_the_oracle_ranks_by_shared_classes(first: PartRunner) -> None:
    record = read_record(first.folder, "rank--target-000")
    assert record is not None
    shares = {each["name"]: index for index, each in enumerate(record["similarities"])}
    for each in record["similarities"]:
        each["shared_classes"] = shares[each["name"]]  # the other way round than by LEEP
    (first.folder / "runs" / "rank--target-000.json").unlink()
    write_record(first.folder, "rank--target-000", record)
    data = first.datamodule(first.split.get("target", 0))
    by_leep = StartingPoints(first, first.settings, data).ranking()
    oracle = StartingPoints(first, first.settings.changed({"vote.similarity": "classes"}), data).ranking()
    assert [each.name for each in oracle] == [each.name for each in reversed(by_leep)]


def test_the_votes_masks_may_carry_the_nearest_models_weights_or_none(first: PartRunner) -> None:
    data = first.datamodule(first.split.get("target", 0))
    own = first.settings.changed({"vote.neighbours": 1})
    nearest = StartingPoints(first, own, data).make("nearest")
    one = StartingPoints(first, own, data).make("vote_nearest")  # of one neighbour: its masks, its weights
    for name, tensor in nearest.backbone.state_dict().items():
        assert torch.equal(tensor, one.backbone.state_dict()[name]), name
    make = StartingPoints(first, first.settings, data).make
    mvp, theirs, random = (make(name) for name in ("mvp", "vote_nearest", "vote_random"))
    assert mvp.notes["widths"] == theirs.notes["widths"] == random.notes["widths"]
    states = [start.backbone.state_dict()["layer1.0.conv1.weight"] for start in (mvp, theirs, random)]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


def test_groups_left_whole_stay_so_in_zoo_vote_and_pruning_from_scratch(first: PartRunner, tmp_path: Path) -> None:
    pruning = {**first.settings.pruning, "exclude": ["residual"]}
    split = first.settings.split
    own = settings(methods=("mvp", "taylor"), pruning=pruning, begins_with=str(first.folder), split=split)
    runner = PartRunner(tmp_path / "second", own)
    names = ("source-000", "source-001", "rank--target-000", "target-000--mvp@4", "target-000--taylor@4")
    for part in names:
        runner.run(part)
    whole = Origin(own.recipe, runner.theta0_path, (3, 32, 32), None, None).groups
    left = {group.name for group in whole if group.kind == "residual"}
    assert left
    for part in names[-2:]:
        record = read_record(runner.folder, part)
        assert record is not None
        for group in whole:
            assert (record["widths"][group.name] == group.size) == (group.name in left), (part, group.name)
    data = runner.datamodule(runner.split.get("target", 0))
    for method in ("parent_magnitude", "oneshot_magnitude", "oneshot_taylor"):
        widths = StartingPoints(runner, own, data).make(method).notes["widths"]
        assert {name for name, width in widths.items() if width == whole.sizes[name]} == left, method
    for entry in ModelZoo(runner.folder / "zoo").entries():
        assert all(entry_masks(entry)[name].all() for name in left)
