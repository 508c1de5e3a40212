from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo import DamagedEntryError, ModelZoo

from .entries import GROUPS, THETA0, make_entry

Fill = Callable[..., ModelZoo]
RECIPE = {"model": "mini"}


def test_a_zoo_is_a_sorted_mapping(fill: Fill) -> None:
    zoo = fill("b", "a")
    (hash8,) = zoo.configs
    assert list(zoo) == list(zoo.names) == [f"a--{hash8}", f"b--{hash8}"] == list(zoo.configs[hash8])
    assert len(zoo) == 2
    assert zoo.names[0] in zoo
    assert "c" not in zoo
    assert zoo[zoo.names[1]].facts["name"] == "b"
    assert [entry.name for entry in zoo.entries(hash8)] == list(zoo.names)
    assert zoo.verify() == dict.fromkeys(zoo.names)
    zoo.remove(zoo.names[0])
    assert zoo.names == (f"b--{hash8}",)
    with pytest.raises(KeyError, match=rf"a--{hash8}.*such as.*b--{hash8}"):
        zoo[f"a--{hash8}"]


def test_a_header_is_what_the_entry_says_about_itself(fill: Fill, tmp_path: Path) -> None:
    zoo = fill("a", "b")
    name, other = zoo.names
    entry, header = zoo[name], zoo.header(name)
    assert header == {
        "name": name,
        "facts": entry.facts,
        "config": entry.config,
        "groups": zoo.group_sizes,
        "info": entry.info,
        "sha256": header["sha256"],
    }
    with pytest.raises(KeyError, match="such as"):
        zoo.header("nothing")
    path = zoo.path / "tasks" / f"{other}.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DamagedEntryError, match=other):
        zoo.header(other)
    foreign = ModelZoo.create(tmp_path / "other", {"model": "other"}, THETA0, GROUPS)
    shutil.copy(foreign.add(make_entry("a")), zoo.path / "tasks")
    with pytest.raises(DamagedEntryError, match="another zoo"):
        zoo.header(name)


def test_theta0_comes_back_and_cannot_be_changed_from_outside(fill: Fill) -> None:
    zoo = fill()
    zoo.theta0().clear()
    found = ModelZoo(zoo.path).theta0()
    assert found.keys() == zoo.theta0().keys() == THETA0.keys()
    assert all((found[name] == THETA0[name]).all() for name in found)
    assert found["stem.num_batches_tracked"].shape == ()


@pytest.mark.parametrize(
    ("recipe", "theta0", "groups", "differs"),
    [
        ({"model": "other"}, THETA0, GROUPS, "backbone recipe: expected.*other.*got.*mini"),
        (
            RECIPE,
            {**THETA0, "stem.weight": THETA0["stem.weight"] + 1},
            GROUPS,
            "begins with other weights than this",
        ),
        (RECIPE, THETA0, {"stem": 6}, "groups: expected"),
    ],
)
def test_the_zoo_of_another_backbone_is_refused(
    recipe: dict, theta0: dict, groups: dict, differs: str, fill: Fill
) -> None:
    zoo = fill("a")
    with pytest.raises(ValueError, match=differs):
        ModelZoo.create(zoo.path, recipe, theta0, groups)
    assert len(ModelZoo.create(zoo.path, RECIPE, THETA0, GROUPS)) == 1


def test_no_zoo_and_damaged_zoo_are_told_apart(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ModelZoo(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no zoo\.json"):
        ModelZoo(tmp_path)
    index = fill().path / "zoo.json"
    index.write_text(index.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(ValueError, match="version 1 or 2, which this lightning_mvp reads, but got 3"):
        ModelZoo(index.parent)
    index.write_text(index.read_text()[:40])
    with pytest.raises(ValueError, match="damaged"):
        ModelZoo(index.parent)


def test_damaged_theta0_is_refused(fill: Fill) -> None:
    zoo = fill()
    path = zoo.path / "theta0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"theta0\.safetensors is not this zoo's θ⁰"):
        ModelZoo(zoo.path).theta0()


def test_damaged_and_foreign_entries_are_named_and_skipped(fill: Fill, tmp_path: Path) -> None:
    zoo = fill("a", "b", "c")
    truncated, foreign, sound = zoo.names
    path = zoo.path / "tasks" / f"{truncated}.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    other = ModelZoo.create(tmp_path / "other", RECIPE, {**THETA0, "block.weight": 2 * THETA0["block.weight"]}, GROUPS)
    shutil.copy(other.add(make_entry("b")), zoo.path / "tasks" / f"{foreign}.safetensors")

    with pytest.warns(UserWarning, match="Skipping a damaged zoo entry") as caught:
        assert [entry.name for entry in zoo.entries()] == [sound]
    assert [name for name in zoo.names if any(name in str(w.message) for w in caught)] == [truncated, foreign]
    problems = zoo.verify()
    assert problems[sound] is None
    assert "cannot be used" in str(problems[truncated])
    assert "another zoo" in str(problems[foreign])
    with pytest.raises(DamagedEntryError, match=foreign):
        zoo[foreign]
    zoo.remove(truncated)
    assert truncated not in zoo


def test_an_entry_is_never_replaced_silently(fill: Fill) -> None:
    zoo = fill("a")
    other = make_entry("a", seed=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        zoo.add(other)
    assert not (zoo[other.name].weights["block.weight"] == other.weights["block.weight"]).all()
    zoo.add(other, overwrite=True)
    assert (zoo[other.name].weights["block.weight"] == other.weights["block.weight"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"masks": {"stem": np.ones(5, bool), "block": np.ones(9, bool)}, "importance": {}},
            "stem expected 6 units, got 5",
        ),
        ({"weights": {"stem.weight": np.ones((3, 3), np.float32)}}, "same names as θ⁰'s.*block.weight"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str, fill: Fill) -> None:
    zoo = fill()
    with pytest.raises(ValueError, match=message):
        zoo.add(replace(make_entry(), **change))
    assert len(zoo) == 0


def test_weights_larger_than_theta0_are_refused(fill: Fill) -> None:
    entry = make_entry()
    weights = {**entry.weights, "stem.weight": np.ones((7, 3), np.float32)}
    with pytest.raises(ValueError, match=r"'stem.weight'.*\(6, 3\).*\(7, 3\)"):
        fill().add(replace(entry, weights=weights))


def _create_and_add(path: Path, number: int) -> None:
    ModelZoo.create(path, RECIPE, THETA0, GROUPS).add(make_entry(f"task-{number}", seed=number))


def test_many_jobs_fill_one_zoo(tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        pool.starmap(_create_and_add, [(tmp_path / "zoo", number) for number in range(6)])
    zoo = ModelZoo(tmp_path / "zoo")
    assert len(zoo) == 6
    assert set(zoo.verify().values()) == {None}


def test_unknown_config_is_refused(fill: Fill) -> None:
    zoo = fill("a")
    with pytest.raises(ValueError, match="`config` to be one of"):
        list(zoo.entries("nothing"))
