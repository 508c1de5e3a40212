"""Zoos written by earlier versions, byte for byte as they were: every version reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mvp import ImageData, MVPCallback, TaskDataModule, TaskModule, find_groups
from lightning_mvp.backbones.features import features_of
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.data import Part
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.training.filling import prune_into_zoo
from lightning_mvp.training.rounds import make_fabric
from lightning_mvp.voting.recall import class_means, recalled
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.migrate import migrate
from lightning_mvp.zoo.new_entry import ZooTarget
from lightning_mvp.zoo.rebuild import dense_backbone
from lightning_mvp.zoo.seen_by import as_seen_by
from lightning_mvp.zoo.tensor_file import open_tensors

from .make_data import CLASSES, images_of

VERSION_1 = Path(__file__).parent / "data" / "zoo-version-1"
ZOO = "aa0bb1ff204f397fcde1249619922a356a3b72440f6cb44347c70dd39b4f6a6b"
# masks, weights, head
ENTRIES = {
    "bare--f69cc171": (
        "0964cc3180404c1d9e3c0ece7adfbed31a26a19e74deae42db6ad5f3961ae878",
        "46937b494c4729cc09d0c1f3aa026dc29178348ce403a1d2bf43d1925e39358f",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    "cold--02d23488": (
        "ecbafebdf4bda5e34e4d7db56714010e81793ec03d308801968e8372507f9b54",
        "b0bea620b7e9c19d085e8e4acaef6fa47b253718da2cfbb9efb5825d41c81269",
        "0f8f48a77c277c37e41d4c707fdaa0d2b09c48a2030edabd60124a30adb84198",
    ),
    "warm--02d23488": (
        "449ed092ea062411c75a2a4badfce99f038c27f4f8f03c463d2b968e978b7019",
        "e0b8a9bbd924975b347bc344e5dc80149fdc9349436051bb15edee6464aa773e",
        "60b3547ccbb2db238fa488881dfc47d7e391783a81446c66707e71858dfbf213",
    ),
}
VOTED = {
    "layer1.residual": "10101010",
    "layer1.0.conv1": "01101100",
    "layer2.0.conv1": "011110110000",
    "layer2.residual": "100011000111",
}


def test_version_1_is_read_to_the_last_bit() -> None:
    zoo = ModelZoo(VERSION_1)
    assert zoo.verify() == dict.fromkeys(ENTRIES)
    assert zoo.fingerprint == ZOO
    assert {
        entry.name: tuple(fingerprint(part) for part in (entry.masks, entry.weights, entry.head))
        for entry in zoo.entries()
    } == ENTRIES
    cold, bare = zoo["cold--02d23488"], zoo["bare--f69cc171"]
    assert cold.facts["classes"] == ["grün", "blue"]
    assert cold.config == {"pruning_ratio": 0.5, "rounds": 4, "ratio_of": "units"}
    assert cold.info == {"metrics": {"val_accuracy": 0.75, "auc": None}, "steps": 100, "zoo": ZOO}
    assert list(cold.masks) == list(cold.importance) == list(zoo.group_sizes)
    assert cold.prototypes is not None
    assert (bare.head, bare.importance, bare.prototypes) == ({}, {}, None)
    assert all(zoo.header(name)["facts"] == zoo[name].facts for name in zoo)


@pytest.mark.parametrize("similarity", ["leep", "prototypes"])
def test_version_1_still_votes(similarity) -> None:
    images, labels = images_of(*CLASSES)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    small, report = voted_backbone(
        ModelZoo(VERSION_1), [(images[order], labels[order])], neighbours=2, config="02d23488", similarity=similarity
    )
    assert sorted(neighbour.name for neighbour in report.neighbours) == ["cold--02d23488", "warm--02d23488"]
    assert {group: "".join(map(str, mask.int().tolist())) for group, mask in report.masks.items()} == VOTED
    assert all(torch.isfinite(tensor).all() for tensor in small.state_dict().values())


# Of a vote by prototypes whose statistics are not re-estimated: its weights are float64 sums, the same on any machine.
MERGED = {
    "zoo-version-1": (
        "78a783e12f1047d227ed4d4fad84588475c943b687b038b0226eaa4e04f5ffef",
        "0f9b9b4e2d28a5a68c8be10fc5a0d0ef990df63de557a9619d4d3950d93eed53",
    ),
    "zoo-vit-version-1": (
        "8453fda802e9b15a6d47d76328a2c2391240fe0909609782eaf7726206a33508",
        "efac21e197ad6f309718847754967728f22fc01776e85e61e2c9a220b79cc280",
    ),
}


@pytest.mark.parametrize("migrated", [False, True])
@pytest.mark.parametrize("name", MERGED)
def test_stored_zoos_of_both_kinds_vote_to_the_last_bit_as_they_did(name: str, migrated: bool, tmp_path: Path) -> None:
    images, labels = images_of(*CLASSES)
    zoo = ModelZoo(VERSION_1.with_name(name))
    small, report = voted_backbone(
        migrate(zoo, tmp_path / "new")[0] if migrated else zoo,
        [(images, labels)],
        neighbours=2,
        config="02d23488",
        similarity="prototypes",
        reestimate_batches=0,
    )
    assert (fingerprint(small.state_dict()), fingerprint(dict(report.masks.items()))) == MERGED[name]


def _copy(folder: Path, name: str) -> ModelZoo:
    return ModelZoo(shutil.copytree(VERSION_1.with_name(name), folder / name))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["zoo-version-1", "zoo-version-2"])
def test_both_versions_are_filled_and_searched_side_by_side(name: str, cut: bool, tmp_path: Path) -> None:
    zoo = _copy(tmp_path, name)
    index, there = (zoo.path / "zoo.json").read_bytes(), set(zoo.names)
    assert (zoo.version, zoo.fingerprint) == (int(name[-1]), ZOO), "how prototypes are made tells no zoos apart"
    images, labels = images_of(*CLASSES)
    data = TaskDataModule(ImageData("colours", CLASSES, *[Part(images, labels)] * 3), name="new", augment="none")
    module = TaskModule.for_task(dense_backbone(zoo), data.facts)
    module.initialise_head(data)
    options: dict[str, Any] = {"pruning_ratio": 0.5, "rounds": 1, "steps_per_round": 1}
    if cut:
        fabric = make_fabric(accelerator="cpu", precision="32-true")
        prune_into_zoo(module, data, ZooTarget(zoo.path, data.facts), PruningSettings(**options), 2, fabric)
    else:
        fit_quietly(module, data, 2, [MVPCallback(**options, head="head", task=data.facts, zoo=zoo.path)])
    assert (zoo.path / "zoo.json").read_bytes() == index, "it is never written again"
    (new,) = set(zoo.names) - there
    entry = zoo[new]
    with open_tensors(zoo.file(new)) as file:  # earlier versions refuse the second by its name
        assert file.metadata["format"] == f"lightning-mvp-entry-{zoo.version}"
    assert entry.facts == data.facts.to_dict()
    assert entry.prototypes_seen_by == zoo.preprocessing
    seen_by = as_seen_by(data.facts, zoo.preprocessing)
    features = features_of(dense_backbone(zoo), preprocess(images, seen_by))
    np.testing.assert_allclose(entry.prototypes, class_means(features, labels), rtol=1e-4, atol=1e-5)

    dense = dense_backbone(zoo)
    target = TargetData(zoo, images, labels, dense, find_groups(dense, preprocess(images[:1], seen_by)), zoo.names)
    passes: list[object] = []
    target.dense.register_forward_pre_hook(lambda *_: passes.append(None))
    with pytest.warns(UserWarning, match="1 of 4 zoo entries have no head"):
        found = recalled(target).order
    assert (sorted(found), len(passes)) == (sorted({*there, new} - {"bare--f69cc171"}), 3 - zoo.version)


def test_what_a_zoo_says_of_prototypes_is_checked(tmp_path: Path) -> None:
    index = _copy(tmp_path, "zoo-version-2").path / "zoo.json"
    facts = json.loads(index.read_text())
    for wrong, message in (
        ("square", "its preprocessing is not usable: expected input_size"),
        ({}, "missing"),
        ({**facts["preprocessing"], "name": "x"}, "expected input_size"),
        ({**facts["preprocessing"], "input_size": 10**6}, "1 to 8192 pixels"),
        ({**facts["preprocessing"], "mean": [None] * 3}, "expected numbers for mean"),
    ):
        index.write_text(json.dumps({**facts, "preprocessing": wrong}))
        with pytest.raises(ValueError, match=f"zoo.json cannot be read: damaged: .*{message}"):
            ModelZoo(index.parent)
    del facts["preprocessing"]
    index.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="lacks"):
        ModelZoo(index.parent)
    with pytest.raises(ValueError, match="Argument `preprocessing` is not usable"):
        ModelZoo.create(tmp_path / "new", None, {}, {"a": 1}, {"input_size": 16})


def test_version_1_is_added_to(tmp_path: Path) -> None:
    zoo, old = ModelZoo(VERSION_1), ModelZoo(VERSION_1)["cold--02d23488"]
    new = ModelZoo.create(tmp_path / "zoo", zoo.recipe, zoo.theta0(), zoo.group_sizes)
    assert new.fingerprint == ZOO
    new.add(old)
    assert fingerprint(new["cold--02d23488"].weights) == fingerprint(old.weights)
