from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo import DamagedEntryError, ZooEntry, entry_id, read_entry, write_entry


def _same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and ours[k].shape == theirs[k].shape and (ours[k] == theirs[k]).all()
        for k in ours
    )


def _path(folder: Path, entry: ZooEntry) -> Path:
    return folder / f"{entry.name}.safetensors"


def test_reading_gives_back_what_was_written(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(_path(tmp_path, entry), entry)
    found = read_entry(path)
    assert (found.name, found.facts, found.config, found.info) == (entry.name, entry.facts, entry.config, entry.info)
    assert list(found.masks) == ["stem", "block"], "groups stay in their order"
    for part in ("masks", "weights", "importance", "head"):
        assert _same(getattr(found, part), getattr(entry, part)), part
    assert found.prototypes is not None
    assert (found.prototypes == entry.prototypes).all()


def test_an_entry_may_lack_head_importance_and_prototypes(entry: ZooEntry, tmp_path: Path) -> None:
    bare = replace(entry, head={}, importance={}, prototypes=None)
    found = read_entry(write_entry(_path(tmp_path, bare), bare))
    assert (found.head, found.importance, found.prototypes) == ({}, {}, None)


def test_an_undefined_metric_does_not_cost_the_entry(entry: ZooEntry, tmp_path: Path) -> None:
    noted = replace(entry, info={"metrics": {"auc": float("nan"), "loss": [0.5, float("inf")]}})
    found = read_entry(write_entry(_path(tmp_path, noted), noted))
    assert found.info == {"metrics": {"auc": None, "loss": [0.5, None]}}


def test_every_flipped_byte_and_every_cut_is_found_and_named(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(_path(tmp_path, entry), entry)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(DamagedEntryError, match=path.name):
            read_entry(path)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedEntryError, match=path.name):
            read_entry(path)


def test_a_renamed_file_is_refused(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(_path(tmp_path, entry), entry)
    with pytest.raises(DamagedEntryError, match="holds the entry"):
        read_entry(path.rename(tmp_path / "other.safetensors"))


def test_writing_twice_keeps_the_first(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(_path(tmp_path, entry), entry)
    second = replace(entry, info={"accuracy": 0.1})
    with pytest.raises(FileExistsError):
        write_entry(path, second)
    assert read_entry(path).info["accuracy"] == 0.75
    write_entry(path, second, overwrite=True)
    assert read_entry(path).info["accuracy"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "source-000"}, "to be named 'source-000--"),
        ({"facts": {"name": "source-000"}}, "classes"),
        ({"masks": {}}, "to have masks and weights"),
        ({"masks": {"stem": np.zeros(6, bool), "block": np.ones(9, bool)}}, "'stem'.*at least one unit"),
        ({"masks": {"stem": np.ones(6, np.uint8), "block": np.ones(9, bool)}}, "'stem'.*bool"),
        ({"weights": {"stem.weight": np.array([1.0, np.nan])}}, "'stem.weight' to be finite"),
        ({"importance": {"stem": np.ones(6, np.float32)}}, "differ in .*block"),
        ({"head": {"weight": np.ones((3, 4)), "bias": np.zeros(2)}}, r"head's weight.*\(2, 4\).*\(3, 4\)"),
        ({"head": {"bias": np.zeros(2)}}, "'weight' and perhaps 'bias'"),
        ({"prototypes": np.full((2, 9), np.inf)}, "prototypes to be finite"),
        ({"config": {"ratio": float("nan")}}, "to be named"),
    ],
)
def test_what_contradicts_itself_is_never_written(change: dict, message: str, entry: ZooEntry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_entry(_path(tmp_path, entry), replace(entry, **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "..", "", "tab\t", "back\\slash"])
def test_task_names_must_be_file_names(name: str) -> None:
    with pytest.raises(ValueError, match="task name"):
        entry_id(name, {})


def test_a_zoo_is_read_without_torch(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(_path(tmp_path, entry), entry)
    code = (
        "import sys; from lightning_mvp.zoo import ModelZoo, read_entry; "
        f"print(read_entry({str(path)!r}).name); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [entry.name, "False"]
