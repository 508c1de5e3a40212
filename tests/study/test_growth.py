"""Zoos that grow in a study: who joins when, who votes, and how variants are told."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch

from lightning_mvp import ModelZoo
from lightning_mvp.study import study_context
from lightning_mvp.study.check_study import require_growth
from lightning_mvp.study.grown_zoo import grown_zoo_folder, with_permuted_labels
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.plan import plan
from lightning_mvp.study.records import read_record, record_path
from lightning_mvp.study.trials import compare_trials
from lightning_mvp.study.zoo_fingerprints import keep_fingerprints, read_fingerprints, zoo_fingerprints
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.zoo.lineage import lineage

from .small_study import images_of, in_memory, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
GROWTHS = {"A": {"seeds": 2, "tasks": 2, "neighbours": 2, "steps": 2}}


def test_orders_are_permutations_of_the_same_tasks():
    first, second = (Growth(seeds=2, tasks=6, order=order).sequence(8) for order in (0, 1))
    assert first == [f"source-{index:03d}" for index in range(2, 8)]
    assert sorted(second) == first != second
    with pytest.raises(ValueError, match=r"`split\.sources` to be at least 50"):
        Growth().sequence(8)


def test_a_zoo_grows_task_by_task_and_targets_begin_with_its_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    split = {"classes_per_task": 3, "sources": 4, "targets": 1, "held_out_fraction": 0.0}
    variants = {
        "grown.A@2": {"method": "grown@2", "vote.growth": "A", "vote.entries": 4, "optim.mimic": 2},
        "once@0": {"method": "oneshot_reconstructed@0"},
    }
    study = settings(methods=("mvp",), split=split, growths=GROWTHS, variants=variants, entries=2, new_images=True)
    waves = [[part.name for part in wave] for stage in ("zoo", "grow") for wave in plan(study)[stage]]
    assert waves == [["source-000", "source-001"], ["grow-A-000"], ["grow-A-001"]]
    runner = PartRunner(tmp_path, study)
    for part in ("pretrain", *chain(*waves)):
        runner.run(part)
    seeds = [read_record(tmp_path, name) for name in ("source-000", "source-001")]
    joined = [read_record(tmp_path, name) for name in ("grow-A-000", "grow-A-001")]
    names = [record["entry"] for record in (*seeds, *joined) if record]
    assert len(ModelZoo(grown_zoo_folder(tmp_path, "A"))) == 4
    assert joined[1] is not None
    assert set(joined[1]["parents"]) == set(names[1:3])
    first = ModelZoo(grown_zoo_folder(tmp_path, "A"))[names[3]].weights
    record_path(tmp_path, "grow-A-001").unlink()  # stopped between entry and record: made again, the same
    runner.run("grow-A-001")
    again = ModelZoo(grown_zoo_folder(tmp_path, "A"))[names[3]].weights
    assert all((first[name] == again[name]).all() for name in first)

    past, new = (part.train.images for part in runner.halves)
    assert len(past) == len(new) == len(data.train) // 2
    assert not {image.tobytes() for image in past.numpy()} & {image.tobytes() for image in new.numpy()}
    for name in variants:
        runner.run(f"target-000--{name}")
    run = read_record(tmp_path, "target-000--grown.A@2")
    assert run is not None
    assert [n["name"] for n in run["neighbours"]] == [names[3], names[2]], "the study's two neighbours"


def test_a_grown_method_says_of_which_growth():
    split = {"classes_per_task": 3, "sources": 4, "targets": 1, "held_out_fraction": 0.0}
    study = settings(split=split, growths=GROWTHS)
    require_growth("x", {"growth": "A", "entries": 4}, study)
    with pytest.raises(ValueError, match=r"x to have `vote.growth` out of \['A'\], but got 'B'"):
        require_growth("x", {"growth": "B", "entries": 4}, study)
    with pytest.raises(ValueError, match=r"`vote.entries` from 2 to 4, the seeds of growth A and .*, but got 5"):
        require_growth("x", {"growth": "A", "entries": 5}, study)
    with pytest.raises(ValueError, match=r"`growths.A` to have some of .*, but got \['task'\]"):
        settings(split=split, growths={"A": {"task": 2}})
    with pytest.raises(ValueError, match=r"`growths.A.seeds` to be at most 1, .* but got 2"):
        settings(split=split, growths=GROWTHS, entries=1)
    assert settings(variants={"few@4": {"method": "mvp@4", "targets": 1}}).varied()[0].targets == 1


def test_orders_are_averaged_in_each_target_and_the_reference_is_paired():
    base = {"method": "grown", "steps": 1, "changes": {}, "macs": 1, "start_seconds": 1.0, "fit_seconds": 1.0}
    base |= {"curve": [(0, 0.2), (1, 0.5)]}
    runs = [
        {**base, "trial": trial, "task": task, "accuracy": accuracy}
        for trial, values in {"a.A@1": (0.5, 0.6), "a.B@1": (0.7, 0.8), "b@1": (0.5, 0.4)}.items()
        for task, accuracy in zip("xy", values, strict=True)
    ]
    ours, other = compare_trials(runs, "a@1")
    assert (ours.tasks, ours.start, ours.difference.mean) == (2, pytest.approx(0.2), 0)
    assert other.difference.mean == pytest.approx(-0.2)
    assert other.difference.low == pytest.approx(-0.3)
    assert ours.orders == pytest.approx({"A": 0.55, "B": 0.75})


def test_a_first_wave_of_as_many_as_vote_freezes_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    split = {"classes_per_task": 3, "sources": 5, "targets": 1, "held_out_fraction": 0.0}
    growths = {"F": {**GROWTHS["A"], "tasks": 3, "first_wave": 2}}
    runner = PartRunner(tmp_path, settings(methods=("mvp",), split=split, growths=growths, entries=2))
    for part in ("pretrain", "source-000", "source-001", *(f"grow-F-00{index}" for index in range(3))):
        runner.run(part)
    members = lineage(ModelZoo(grown_zoo_folder(tmp_path, "F")))
    assert [member.wave for member in members] == [0, 0, 1, 1, 2]
    joined = [read_record(tmp_path, f"grow-F-00{index}") or {} for index in range(3)]
    assert len({record["masks"] for record in joined}) == 1
    assert set(joined[2]["parents"]) == {joined[0]["entry"], joined[1]["entry"]}


def test_zoos_that_change_while_targets_are_measured_are_told(tmp_path: Path):
    (tmp_path / "grown-A" / "tasks").mkdir(parents=True)
    (tmp_path / "grown-A" / "zoo.json").write_text("{}")
    entry = tmp_path / "grown-A" / "tasks" / "one.safetensors"
    entry.write_bytes(b"one")
    before = zoo_fingerprints(tmp_path)
    keep_fingerprints(tmp_path, before, zoo_fingerprints(tmp_path))
    assert read_fingerprints(tmp_path) == before
    entry.write_bytes(b"two")
    with pytest.raises(RuntimeError, match="but grown-A changed"):
        keep_fingerprints(tmp_path, before, zoo_fingerprints(tmp_path))


def test_permuted_labels_are_those_of_the_task_and_the_data_stay_as_they_are():
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    task = TaskDataModule(data, ["c", "a"], "task", 4, seed=0, augment="none")
    before = task.train_images()[1].clone()
    permuted = with_permuted_labels(task, seed=3)
    assert torch.equal(permuted.train_images()[0], task.train_images()[0])
    assert not torch.equal(permuted.train_images()[1], before)
    assert torch.equal(permuted.train_images()[1].bincount(), before.bincount())
    assert torch.equal(permuted.val_images()[1], task.val_images()[1])
    assert torch.equal(task.train_images()[1], before)
    assert (permuted.facts, permuted.batch_size, permuted.augment) == (task.facts, 4, "none")
