"""Network file systems show a file some time after another machine has written it: wait, then say so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp import files
from lightning_mvp.files import UnseenFileError
from lightning_mvp.zoo import DamagedEntryError, ModelZoo
from lightning_mvp.zoo import index as index_module

from .entries import GROUPS, THETA0, make_entry

Fill = Callable[..., ModelZoo]


class Network:
    """Files that can't be opened, or that their folder doesn't even list, until somebody has slept for so long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unopened: dict[str, float] = {}
        self.unlisted: dict[str, float] = {}
        self.number, self.clock = errno.ENOENT, 0.0
        open_, listdir = os.open, os.listdir

        def sleep(seconds: float) -> None:
            self.clock += seconds

        def late_open(path: Any, *args: Any, **kwargs: Any) -> int:
            if self.unopened.get(os.path.basename(path), 0) > self.clock:
                raise OSError(self.number, os.strerror(self.number), str(path))
            return open_(path, *args, **kwargs)

        def late_listdir(path: Any) -> list[str]:
            return [name for name in listdir(path) if self.unlisted.get(name, 0) <= self.clock]

        monkeypatch.setattr(files, "sleep", sleep)
        monkeypatch.setattr(os, "open", late_open)
        monkeypatch.setattr(os, "listdir", late_listdir)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_listed_entry_is_waited_for(number: int, fill: Fill, network: Network) -> None:
    zoo = fill("a", "b")
    network.number = number
    network.unopened = {f"{name}.safetensors": 1.0 + i for i, name in enumerate(zoo.names)}
    assert [entry.name for entry in zoo.entries()] == list(zoo.names)
    assert network.clock >= 2.0
    network.unopened = {f"{zoo.names[0]}.safetensors": network.clock + 1}
    assert zoo.header(zoo.names[0])["name"] == zoo.names[0]


def test_an_entry_that_is_never_shown_is_named_and_skipped(fill: Fill, network: Network) -> None:
    zoo = fill("a", "b")
    late, sound = zoo.names
    network.unopened = {f"{late}.safetensors": 1e9}
    with pytest.raises(DamagedEntryError, match=rf"{late}\.safetensors.*could not be opened in 3 s.*shows it late"):
        zoo[late]
    with pytest.warns(UserWarning, match=late):
        assert [entry.name for entry in zoo.entries()] == [sound]
    assert "shows it late" in str(zoo.verify()[late])
    before = network.clock
    with pytest.raises(KeyError, match="No entry 'c'"):
        zoo["c"]
    assert network.clock == before, "nobody waits for what nobody listed"


def test_an_entry_removed_while_the_zoo_is_read_is_no_damage(fill: Fill) -> None:
    zoo = fill("a", "b", "c")
    first, second, third = zoo.names
    reading = zoo.entries()
    assert next(reading).name == first
    zoo.remove(second)
    assert [entry.name for entry in reading] == [third]


@pytest.mark.parametrize("file", ["zoo.json", "theta0.safetensors"])
def test_a_zoo_is_opened_although_its_files_are_shown_late(file: str, fill: Fill, network: Network) -> None:
    path = fill("a").path
    network.unopened = {file: 2.0}
    assert len(ModelZoo(path).theta0()) == len(THETA0)
    network.unopened = {file: 1e9}
    with pytest.raises(UnseenFileError, match=f"{file} is there by its folder"):
        ModelZoo(path).theta0()


def test_a_zoo_that_another_job_has_just_created_is_waited_for(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "zoo", files.write_whole

    def other_is_faster(target: Path, payload: bytes) -> None:
        write(target, payload)
        network.unopened[target.name] = network.unlisted[target.name] = network.clock + 1.0
        raise FileExistsError(errno.EEXIST, "the file system knows of it, but does not show it")

    monkeypatch.setattr(index_module, "write_whole", other_is_faster)
    zoo = ModelZoo.create(path, {"model": "mini"}, THETA0, GROUPS)
    assert network.clock >= 2.0, "θ⁰ and the index were both waited for"
    zoo.add(make_entry())
    assert list(zoo.verify().values()) == [None]
