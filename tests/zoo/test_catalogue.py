"""The catalogue: what it says is what the entries say, it is made anew where it is stale, and it is never trusted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo import catalogue as module
from lightning_mvp.zoo.catalogue import CATALOGUE, FORMAT, catalogue, stacked

from .conftest import make_entry

Fill = Callable[..., ModelZoo]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entries that were opened to make cards of."""
    names: list[str] = []
    card = module._card
    monkeypatch.setattr(module, "_card", lambda zoo, name: (names.append(name), card(zoo, name))[1])
    return names


def test_a_card_says_what_its_entry_says(fill: Fill) -> None:
    zoo = fill("b", "a")
    for cards in (catalogue(zoo), catalogue(ModelZoo(zoo.path))):  # made, then read
        assert list(cards) == sorted(zoo.names)
        for name, card in cards.items():
            entry = zoo[name]
            assert card.classes == tuple(entry.facts["classes"])
            assert card.has_head == bool(entry.head)
            np.testing.assert_array_equal(card.prototypes, entry.prototypes)
            assert {**card.seen_by, "name": entry.facts["name"], "classes": entry.facts["classes"]} == entry.facts
    rows, bounds = stacked(list(cards.values()))
    assert bounds.tolist() == np.cumsum([0, *(len(zoo[name].prototypes) for name in cards)]).tolist()
    np.testing.assert_array_equal(rows[bounds[0] : bounds[1]], zoo[next(iter(cards))].prototypes)


def test_only_what_is_new_or_changed_is_opened(fill: Fill, opened: list[str]) -> None:
    zoo = fill("a", "b")
    first, second = zoo.names
    catalogue(zoo)
    assert sorted(opened) == [first, second]
    opened.clear()
    catalogue(ModelZoo(zoo.path))
    assert opened == []

    zoo.add(make_entry("c", seed=3))
    zoo.add(make_entry("a", seed=9), overwrite=True)
    assert set(catalogue(zoo)) == set(zoo.names)
    assert sorted(opened) == [first, zoo.names[2]]
    np.testing.assert_array_equal(catalogue(zoo)[first].prototypes, zoo[first].prototypes)

    opened.clear()
    zoo.remove(second)
    assert second not in catalogue(zoo)
    assert opened == []


def _of_another_zoo(path: Path) -> None:
    other = ModelZoo.create(path.parent / "other", {"model": "other"}, *_theta0())
    other.add(make_entry("a"))
    catalogue(other)
    os.replace(other.path / CATALOGUE, path)


def _theta0() -> tuple[dict, dict]:
    from .conftest import GROUPS, THETA0

    return THETA0, GROUPS


def _without_rows(path: Path) -> None:
    tensors = load_file(path)
    tensors["prototypes"] = tensors["prototypes"][:-1].copy()
    save_file(tensors, path, {"format": FORMAT})


def _bounds_backwards(path: Path) -> None:
    tensors = load_file(path)
    tensors["bounds"] = tensors["bounds"].copy()
    tensors["bounds"][1] = 10**9
    save_file(tensors, path, {"format": FORMAT})


def _not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["prototypes"] = np.full_like(tensors["prototypes"], np.nan)
    save_file(tensors, path, {"format": FORMAT})


def _other_json(path: Path) -> None:
    tensors = load_file(path)
    tensors["about"] = np.frombuffer(b'{"names": 7}', np.uint8)
    save_file(tensors, path, {"format": FORMAT})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        _of_another_zoo,
        _without_rows,
        _bounds_backwards,
        _not_finite,
        _other_json,
    ],
    ids=["missing", "empty", "cut", "of another zoo", "rows missing", "bounds", "not finite", "json"],
)
def test_a_catalogue_that_cannot_be_used_is_made_anew(damage: Callable[[Path], None], fill: Fill) -> None:
    zoo = fill("a", "b")
    expected = catalogue(zoo)
    damage(zoo.path / CATALOGUE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = catalogue(zoo)
    assert list(again) == list(expected)
    for name, card in again.items():
        np.testing.assert_array_equal(card.prototypes, expected[name].prototypes)
    assert module._read(zoo).keys() == expected.keys()


def test_a_damaged_entry_is_named_each_time_and_left_out(fill: Fill) -> None:
    zoo = fill("a", "b")
    path = zoo.path / "tasks" / f"{zoo.names[0]}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"Skipping a damaged zoo entry.*{zoo.names[0]}"):
            assert list(catalogue(zoo)) == [zoo.names[1]]


def test_prototypes_of_another_width_are_kept_out_of_the_file_but_told(fill: Fill) -> None:
    zoo = fill("a", "b")
    wide = make_entry("c", seed=3)
    assert wide.prototypes is not None
    zoo.add(type(wide)(**{**vars(wide), "prototypes": np.ones((len(wide.prototypes), 77), np.float32)}))
    for _ in range(2):
        assert catalogue(zoo)[wide.name].prototypes.shape[1] == 77


def test_a_zoo_that_one_may_only_read_is_read(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = fill("a")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(module, "write_whole", refused)
    assert list(catalogue(zoo)) == list(zoo.names)
    assert not (zoo.path / CATALOGUE).exists()


def test_writers_of_entries_and_of_the_catalogue_do_not_disturb_each_other(fill: Fill) -> None:
    zoo = fill("a")
    problems: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(30):
                cards = catalogue(ModelZoo(zoo.path))
                assert all(card.prototypes is not None for card in cards.values())
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(20):
        zoo.add(make_entry(f"new-{number}", seed=number))
    for reader in readers:
        reader.join()
    assert not problems
    assert list(catalogue(zoo)) == list(zoo.names)
    assert len(zoo) == 21
    assert not [file for file in zoo.path.iterdir() if file.name.startswith(".")]


def test_it_needs_no_torch(fill: Fill) -> None:
    zoo = fill("a")
    code = "import sys; from lightning_mvp.zoo.catalogue import ModelZoo, catalogue; catalogue(ModelZoo(sys.argv[1])); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules", str(zoo.path)], check=True)


def test_an_empty_zoo_has_no_cards(fill: Fill) -> None:
    assert catalogue(fill()) == {}
