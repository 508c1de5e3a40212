"""What can go wrong with the disk and the folder: a clear error of the right class, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mvp import files
from lightning_mvp.zoo import DamagedEntryError, ModelZoo
from lightning_mvp.zoo import zoo as zoo_module

from .entries import GROUPS, THETA0, make_entry

Fill = Callable[..., ModelZoo]
ROOT = Path(__file__).parents[2]

# Fills a file system of 400 kB, then makes it read-only; in a name space of its own, so that it needs no rights.
REAL_DISK = """
set -e
mount -t tmpfs -o size=400k none "$1"
exec "$2" -c '
import json, os, subprocess, sys
from lightning_mvp.zoo import ModelZoo
from tests.zoo.entries import GROUPS
from tests.zoo.writer import LARGE, large_entry
from dataclasses import replace
theta0 = {**LARGE, "large": LARGE["large"][:64]}
def small(task, seed):
    entry = large_entry(task, seed)
    return replace(entry, weights={**entry.weights, "large": entry.weights["large"][:64]})
zoo = ModelZoo.create(sys.argv[1] + "/zoo", None, theta0, GROUPS)
found = {}
zoo.add(small("task-0", 0))
def attempt(label, act):
    before = sorted(os.listdir(zoo.path / "tasks"))
    try:
        act()
    except OSError as error:
        found[label] = [type(error).__name__, error.errno, str(error), before == sorted(os.listdir(zoo.path / "tasks"))]
for i in range(1, 9):
    attempt("full", lambda: zoo.add(small(f"task-{i}", i)))
    if "full" in found:
        break
attempt("full, overwriting", lambda: zoo.add(small("task-0", 99), overwrite=True))
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
attempt("read-only", lambda: zoo.add(small("other", 0)))
attempt("read-only, new zoo", lambda: ModelZoo.create(sys.argv[1] + "/second", None, theta0, GROUPS))
found["verify"] = list(zoo.verify().values())
found["seed"] = zoo[zoo.names[0]].info["seed"]
print(json.dumps(found))
' "$1"
"""


def test_a_full_and_a_read_only_disk_are_said_and_lose_nothing(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, 'mount -t tmpfs none "$0"', str(tmp_path)], capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    done = subprocess.run(
        [*command, REAL_DISK, "sh", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for label, words in (
        ("full", "No space left on device. Nothing was changed. Mend that, or use another folder, and try again"),
        ("full, overwriting", "No space left on device. Nothing was changed"),
        ("read-only", "Read-only file system. Nothing was changed. Mend that, or use another folder"),
        ("read-only, new zoo", "Read-only file system. Nothing was changed"),
    ):
        kind, number, message, same = found[label]
        assert kind == "OSError"
        assert number
        assert words in message, label
        assert str(tmp_path) in message
        assert same, "no file more, not even a hidden one"
    assert "the zoo at" in found["full"][2].lower()
    assert len(found["verify"]) > 1
    assert set(found["verify"]) == {None}
    assert found["seed"] == 0, "the old entry is still there"


def test_a_limit_on_the_size_of_files_is_met_in_the_middle_of_a_write(tmp_path: Path) -> None:
    code = """
import resource, sys
from lightning_mvp.zoo import ModelZoo
from tests.zoo.entries import GROUPS
from tests.zoo.writer import LARGE, large_entry
zoo = ModelZoo.create(sys.argv[1], None, LARGE, GROUPS)
zoo.add(large_entry("first", 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    zoo.add(large_entry("second", 2))
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "zoo")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "File too large. Nothing was changed. Raise the limit" in done.stdout
    zoo = ModelZoo(tmp_path / "zoo")
    assert list(zoo.verify().values()) == [None]
    assert len(os.listdir(zoo.path / "tasks")) == 1


def test_a_folder_that_may_not_be_written_to_is_said(fill: Fill) -> None:
    zoo = fill("first")
    code = """
import os, sys
from lightning_mvp.zoo import ModelZoo
from tests.zoo.entries import make_entry
os.chdir(sys.argv[1])
zoo = ModelZoo(".")
zoo.theta0()
make_entry("second")
if os.getuid() == 0:  # to whom everything is allowed
    os.setuid(65534)
else:
    os.chmod("tasks", 0o555)
try:
    zoo.add(make_entry("second"))
except PermissionError as error:
    print(error)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(zoo.path)], capture_output=True, text=True, check=True, cwd=ROOT
        )
    finally:
        os.chmod(zoo.path / "tasks", 0o755)
    assert "Permission denied. Nothing was changed. Mend that, or use another folder" in done.stdout
    assert len(os.listdir(zoo.path / "tasks")) == 1


def test_a_folder_that_is_gone_is_said_and_not_made_anew(fill: Fill) -> None:
    zoo = fill("first")
    moved = zoo.path.rename(zoo.path.with_name("moved"))
    for act in (
        lambda: zoo.add(make_entry("second", seed=1)),
        lambda: zoo.names,
        lambda: len(zoo),
        lambda: zoo[make_entry("first").name],
        lambda: list(zoo.entries()),
        zoo.verify,
    ):
        with pytest.raises(FileNotFoundError, match=r"was there when it was opened.*zoo\.json is gone.*unmounted"):
            act()
    assert not zoo.path.exists()
    zoo.path.mkdir()  # what is left of a file system that is not mounted
    with pytest.raises(FileNotFoundError, match="unmounted"):
        zoo.add(make_entry("second", seed=1))
    assert not list(zoo.path.iterdir())
    zoo.path.rmdir()
    moved.rename(zoo.path)
    zoo.add(make_entry("second", seed=1))
    assert list(zoo.verify().values()) == [None, None]


def test_a_folder_that_goes_away_during_the_write_is_said(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, write = fill("first"), files._write

    def vanishing(path: Path, payload: bytes) -> None:
        write(path, payload)
        zoo.path.rename(zoo.path.with_name("moved"))

    monkeypatch.setattr(files, "_write", vanishing)
    with pytest.raises(FileNotFoundError, match="Its folder is gone: mount"):
        zoo.add(make_entry("second", seed=1))
    assert not zoo.path.exists()


def test_a_folder_that_goes_away_just_before_the_write_is_not_made_anew(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = fill("first")
    monkeypatch.setattr(zoo_module, "make_folder", lambda _: zoo.path.rename(zoo.path.with_name("moved")))
    with pytest.raises(FileNotFoundError, match="Its folder is gone: mount"):
        zoo.add(make_entry("second", seed=1))
    assert not zoo.path.exists()


def test_a_zoo_replaced_by_another_is_said(fill: Fill, tmp_path: Path) -> None:
    zoo = fill("first")
    other = ModelZoo.create(tmp_path / "other", {"model": "other"}, THETA0, GROUPS)
    other.add(make_entry("first"))
    shutil.rmtree(zoo.path)
    other.path.rename(zoo.path)
    for act in (lambda: zoo.add(make_entry("second", seed=1)), lambda: zoo[zoo.names[0]], lambda: list(zoo.entries())):
        with pytest.raises(ValueError, match=r"replaced by another one since.*expected.*mini.*got.*other") as caught:
            act()
        assert not isinstance(caught.value, DamagedEntryError), "it is not the entry's fault"
    assert len(ModelZoo(zoo.path)) == 1


def test_files_in_the_way_are_said(fill: Fill, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "zoo"):
        with pytest.raises(ValueError, match="to be a folder for a zoo, but a file is in the way"):
            ModelZoo.create(path, None, THETA0, GROUPS)
        with pytest.raises(FileNotFoundError, match="Expected a zoo at"):
            ModelZoo(path)
    zoo = fill()
    (zoo.path / "tasks").touch()
    with pytest.raises(NotADirectoryError, match="a file of that name is in the way"):
        zoo.add(make_entry())


def test_leftovers_go_away_when_they_are_old_and_nobody_holds_them(fill: Fill) -> None:
    zoo = fill("first")
    tasks = zoo.path / "tasks"
    names = [
        ".a.safetensors.0123456789abcdef.tmp",
        f".{'0' * 32}.claim",
        ".a.safetensors.ab_cd3fg.tmp",  # as the first version named them
    ]
    own = [".own.tmp", ".DS_Store", ".nfs0123456789abcdef", "notes.tmp"]
    for name in (*names, *own, ".theirs.0123456789abcdef.tmp"):
        (tasks / name).touch()
        os.utime(tasks / name, (0, (tasks / name).stat().st_mtime - 3700))
    young = ".young.0123456789abcdef.tmp"
    (tasks / young).touch()
    with open(tasks / ".theirs.0123456789abcdef.tmp", "r+b") as theirs:
        assert files.lock(theirs)
        zoo.add(make_entry("second", seed=1))
        left = {name for name in os.listdir(tasks) if not name.endswith(".safetensors")}
        assert left == {*own, young, ".theirs.0123456789abcdef.tmp"}
    zoo.add(make_entry("third", seed=2))
    assert {name for name in os.listdir(tasks) if not name.endswith(".safetensors")} == {*own, young}
    assert len(zoo) == 3
