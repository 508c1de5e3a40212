"""A voted model becomes an entry: its masks, weights and importance, who its parents are, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mvp import ImageData, MetaVoteModule, ModelZoo, TaskDataModule, add_voted, grow, voted_backbone
from lightning_mvp.backbones import find_groups
from lightning_mvp.fitting.fit import make_trainer
from lightning_mvp.fitting.growing import start_accuracy, start_of_growth
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.training.adding import WorseThanStartError
from lightning_mvp.voting.latest import latest
from lightning_mvp.voting.similarities import Farthest
from lightning_mvp.zoo.families import families
from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.rebuild import dense_backbone, rebuild
from lightning_mvp.zoo.waves import WAVES, family_members

from ..training.conftest import TARGET, task
from ..voting.own import Alphabetical, First

ZooOf = Callable[[str], ModelZoo]
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}


@pytest.fixture
def zoo(zoo_of: ZooOf, tmp_path: Path) -> ModelZoo:
    return ModelZoo(shutil.copytree(zoo_of("resnet").path, tmp_path / "zoo"))


def test_a_grown_entry_is_the_trained_model_with_the_masks_of_its_vote(zoo: ModelZoo, target: TaskDataModule):
    seeds = zoo.names
    grown = grow(zoo, target, steps=3, neighbours=2, learning_rate=0.02, keep_worse=True)
    entry = zoo[grown.name]
    assert zoo.verify() == dict.fromkeys(zoo.names)
    assert entry.info["parents"] == [seeds[2], seeds[1]], "the last by name, as seeds are of one wave"
    assert (entry.info["wave"], entry.info["generation"], entry.info["steps"]) == (1, 1, 3)
    assert entry.info["val_accuracy"] == grown.val_accuracy == grown.module.accuracy_on(*target.val_images())
    assert entry.info["start_val_accuracy"] == grown.start_accuracy
    _, report = voted_backbone(zoo, target, neighbours=latest(zoo, 2, before_wave=1))
    assert {group: mask.tolist() for group, mask in entry.masks.items()} == {
        group: mask.tolist() for group, mask in report.masks.items()
    }
    for group, scores in entry.importance.items():
        both = np.stack([zoo[name].importance[group] for name in entry.info["parents"]]).astype(np.float64)
        assert np.array_equal(scores, both.mean(0).astype(np.float32))
    dense = dense_backbone(zoo)
    small, head = rebuild(entry, dense, find_groups(dense, grown.module.example_input_array))
    assert head is not None
    images, labels = target.test_images()
    with torch.no_grad():
        right = head(small(preprocess(images, target.facts))).argmax(1) == labels
    assert right.float().mean().item() == pytest.approx(grown.module.accuracy_on(images, labels))
    assert entry.prototypes is not None
    assert len(entry.prototypes) == 3
    assert entry.info["kept"]["params"] == pytest.approx(
        sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    )


def test_prototypes_of_a_task_of_other_normalisation_are_in_the_zoos(
    zoo: ModelZoo, data: ImageData, target: TaskDataModule
):
    other = replace(data, mean=(0.1,) * 3, std=(0.5,) * 3)
    own, grown = (
        grow(zoo, each, steps=1, neighbours=2, keep_worse=True) for each in (target, task(other, TARGET, "other"))
    )
    entries = [zoo[found.name] for found in (own, grown)]
    assert [entry.prototypes_seen_by for entry in entries] == [None, zoo.preprocessing]
    assert entries[1].facts["mean"] == [0.1] * 3
    np.testing.assert_array_equal(entries[0].prototypes, entries[1].prototypes)


def test_an_entrys_config_names_what_is_ours_and_where_others_come_from(zoo: ModelZoo, target: TaskDataModule):
    class Local(Alphabetical):
        """Nobody else can import it."""

    options: dict[str, Any] = {"steps": 1, "neighbours": 2, "which": "nearest", "keep_worse": True}
    seeds = zoo.names
    with pytest.raises(ValueError, match=r"any process can import, since its import path is stored, but got .*Local"):
        grow(zoo, target, similarity=Local(), **options)
    assert zoo.names == seeds, "refused before anything was trained"
    named = grow(zoo, target, similarity="farthest", **options)
    assert zoo[named.name].config["training"]["similarity"] == "farthest"
    with pytest.raises(FileExistsError):
        grow(zoo, target, similarity=Farthest(), wave=1, **options)
    own = zoo[grow(zoo, target, similarity=Alphabetical(2), merge=First(), wave=1, **options).name]
    path = Alphabetical.__module__
    assert own.config["training"]["similarity"] == {"_target_": f"{path}.Alphabetical", "factor": 2}
    assert own.config["training"]["merge"] == {"_target_": f"{path}.First"}
    assert own.info["parents"] == [seeds[2], seeds[1]]


def test_later_votes_take_grown_entries_and_seeds_together(zoo: ModelZoo, data: ImageData, target: TaskDataModule):
    seeds = zoo.names
    first = grow(zoo, target, steps=1, neighbours=2, keep_worse=True)
    second = grow(zoo, task(data, "bdf", "other"), steps=1, neighbours=2, keep_worse=True)
    assert list(families(zoo).values()) == [zoo.names]
    assert zoo[second.name].info["parents"] == [first.name, seeds[2]]
    assert [(member.wave, member.generation) for member in lineage(zoo)][3:] == [(1, 1), (2, 2)]
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=5)
    assert {neighbour["name"] for neighbour in module.report["neighbours"]} == set(zoo.names)
    only = MetaVoteModule.from_zoo(zoo, target, neighbours=1, config=first.name[-8:])
    assert [neighbour["name"] for neighbour in only.report["neighbours"]] == [first.name]


def test_a_wave_grows_the_same_whatever_was_added_since_it_was_listed(
    zoo: ModelZoo, data: ImageData, target: TaskDataModule, tmp_path: Path
):
    other = task(data, "bdf", "other")
    options = {"steps": 2, "neighbours": 2, "wave": 1, "which": "nearest", "keep_worse": True}
    copied = ModelZoo(shutil.copytree(zoo.path, tmp_path / "copy"))
    names = [grow(zoo, data, **options).name for data in (target, other)]
    # The other order, and an entry of an earlier moment in between.
    grow(copied, other, **options)
    grow(copied, target, steps=1, neighbours=1, keep_worse=True)
    grow(copied, target, **options)
    for name in names:
        one, two = zoo[name], copied[name]
        assert one.info["parents"] == two.info["parents"]
        assert all(np.array_equal(one.masks[key], two.masks[key]) for key in one.masks)
        assert all(np.array_equal(one.weights[key], two.weights[key]) for key in one.weights)
    assert len(list((zoo.path / WAVES).iterdir())) == 1
    with pytest.raises(FileExistsError, match="already has an entry"):
        grow(zoo, target, **options)
    renewed = grow(zoo, target, **{**options, "wave": 2})
    assert renewed.name not in names
    assert zoo[renewed.name].info["wave"] == 2


def test_the_nearest_of_the_latest(zoo: ModelZoo, data: ImageData, target: TaskDataModule):
    twin = grow(zoo, task(data, "acd", "twin"), steps=1, neighbours=2, keep_worse=True)
    _, members = family_members(zoo)
    module = start_of_growth(zoo, target, members, 1, "nearest", among=1)
    assert module.report["neighbours"][0]["name"] == twin.name
    module = start_of_growth(zoo, target, members, 4, "nearest", exclude=(twin.name,))
    assert twin.name not in {neighbour["name"] for neighbour in module.report["neighbours"]}
    ranking = latest(zoo, 2, classes=target.facts.classes)
    assert [neighbour.shared_classes for neighbour in ranking] == [3, 1]
    _, report = voted_backbone(zoo, target, neighbours=2, similarity="latest", shortlist=1)
    assert list(report.neighbours) == list(ranking)
    assert (report.scored, report.entries, report.evidence) == (2, len(members), None)
    with pytest.warns(UserWarning, match="at least 9 entries to choose from, but got 3"):
        assert len(latest(zoo, 9, before_wave=1)) == 3


def test_a_model_that_its_training_made_worse_is_not_added(zoo: ModelZoo, target: TaskDataModule):
    before = zoo.names
    with pytest.raises(WorseThanStartError, match=r"where the start had .* It was not added"):
        grow(zoo, target, steps=4, neighbours=2, learning_rate=30.0)
    assert zoo.names == before


def test_a_random_head_is_replaced_only_to_measure_the_start(zoo: ModelZoo, target: TaskDataModule):
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=2, head_init="random")
    before = module.head.weight.clone()
    measured = start_accuracy(module, target, "random")
    assert torch.equal(module.head.weight, before)
    ridge = MetaVoteModule.from_zoo(zoo, target, neighbours=2)
    assert measured == start_accuracy(ridge, target) == ridge.accuracy_on(*target.val_images())


def test_your_own_trainer_and_a_checkpoint_of_it_add_the_same_entry(
    zoo: ModelZoo, target: TaskDataModule, data: ImageData, tmp_path: Path
):
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=2, ballots="importance", temperature=0.1)
    trainer = make_trainer(2, **QUIET)
    trainer.fit(module, datamodule=target)
    trainer.save_checkpoint(tmp_path / "voted.ckpt")
    copied = ModelZoo(shutil.copytree(zoo.path, tmp_path / "copy"))
    name = add_voted(zoo, module, target, start_accuracy=None, info={"steps": 2}, storage="bfloat16")
    loaded = MetaVoteModule.load_from_checkpoint(tmp_path / "voted.ckpt")
    assert add_voted(copied, loaded, target, start_accuracy=None, info={"steps": 2}) == name
    assert all(np.array_equal(mask, copied[name].masks[group]) for group, mask in zoo[name].masks.items())
    assert zoo[name].config["steps"] == 2
    assert zoo[name].config["training"]["learning_rate"] == 0.05
    with pytest.raises(ValueError, match="to be of the module's task 'target'"):
        add_voted(zoo, module, task(data, "abc", "first"), start_accuracy=None)
    voter = module.report["neighbours"][0]["name"]
    copied.remove(voter)
    with pytest.raises(ValueError, match=f"{voter} is not there"):
        add_voted(copied, module, target, start_accuracy=None)
    copied.add(zoo[module.report["neighbours"][1]["name"]], overwrite=True)
    swapped = zoo[module.report["neighbours"][1]["name"]]
    copied.add(
        type(swapped)(**{**vars(swapped), "name": voter, "facts": zoo[voter].facts, "head": {}, "prototypes": None})
    )
    with pytest.raises(ValueError, match="they were replaced since"):
        add_voted(copied, module, target, start_accuracy=None)


def test_a_process_that_is_not_the_first_looks_at_no_voters(
    zoo_of: ZooOf, target: TaskDataModule, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_mvp.fitting.growing.is_first_process", lambda: False)
    monkeypatch.setattr("lightning_mvp.training.meta_vote.is_first_process", lambda: False)
    for which in ("latest", "nearest"):
        assert start_of_growth(zoo_of("resnet"), target, (), 2, which, learning_rate=0.01).waits


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "best"}, "`which`"),
        ({"among": 8}, "`among` to be None with which='latest'"),
        ({"which": "nearest", "neighbours": 4, "among": 3}, "`among` to be at least the 4 that vote"),
        ({"neighbours": 0}, "`neighbours` to be at least 1"),
        ({"wave": 0}, "`wave` to be an integer of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, words: str, zoo_of: ZooOf, target: TaskDataModule):
    with pytest.raises(ValueError, match=words):
        grow(zoo_of("vit"), target, **options)
