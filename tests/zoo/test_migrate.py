"""A zoo of format 1 is copied into one of format 2: whole or not at all, and it is ranked as the old one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_mvp.apps.zoo import main
from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo import migrate as module
from lightning_mvp.zoo.catalogue import catalogue
from lightning_mvp.zoo.leftovers import leftovers
from lightning_mvp.zoo.migrate import migrate

from .conftest import GROUPS, THETA0, make_entry

VERSION_1 = Path(__file__).parent / "data" / "zoo-version-1"
COMMON = {"input_size": 8, "mean": [0.5], "std": [0.25], "interpolation": "bilinear", "crop": 1.0}


@pytest.fixture
def old(tmp_path: Path) -> ModelZoo:
    """Three entries of one preprocessing, one of another, one without prototypes, one damaged."""
    zoo = ModelZoo.create(tmp_path / "old", {"model": "mini"}, THETA0, GROUPS)
    facts = json.loads((zoo.path / "zoo.json").read_text())
    del facts["preprocessing"]
    (zoo.path / "zoo.json").write_text(json.dumps({**facts, "version": 1}))
    for seed, task in enumerate("abcdef"):
        entry = make_entry(task, seed=seed)
        mean = {"mean": [0.1]} if task in "a" else {}
        bare = {"prototypes": None} if task in "b" else {}
        zoo.add(replace(entry, facts={**entry.facts, **mean}, **bare))
    zoo.file(make_entry("f").name).write_bytes(b"torn")
    (zoo.path / "waves").mkdir()
    (zoo.path / "waves" / "x.refused.json").write_text("{}")
    return ModelZoo(zoo.path)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_copy_holds_the_same_and_says_how_most_prototypes_were_made(old: ModelZoo, tmp_path: Path) -> None:
    before = content(old.path)
    with pytest.warns(UserWarning, match="damaged zoo entry.*f--"):
        new, counts = migrate(old, tmp_path / "deep" / "new")
    assert content(old.path) == before
    assert {**content(new.path), "zoo.json": b""} == {**before, "zoo.json": b""}
    assert (old.version, new.version, old.preprocessing, new.preprocessing) == (1, 2, None, COMMON)
    assert new.fingerprint == old.fingerprint
    assert list(counts.values()) == [3, 1]
    assert os.listdir(tmp_path / "deep") == ["new"]
    with pytest.warns(UserWarning, match="damaged"):
        cards, others = catalogue(new), catalogue(old)
    assert {name: card.seen_by for name, card in cards.items()} == {n: c.seen_by for n, c in others.items()}


@pytest.mark.parametrize("place", ["old", "old/tasks/new", "there", "file"])
def test_what_is_there_is_never_touched(place: str, old: ModelZoo, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    before = content(tmp_path)
    with pytest.raises((ValueError, FileExistsError), match=r"another folder than|exists already"):
        migrate(old, tmp_path / place)
    assert content(tmp_path) == before


def test_a_copy_that_fails_leaves_nothing(old: ModelZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, payload: bytes) -> None:
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(payload)

    monkeypatch.setattr(module, "write_whole", write)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(OSError, match="No space left"):
        migrate(old, tmp_path / "new")
    assert os.listdir(tmp_path) == ["old"]


KILLED = """
import os, signal, sys
from lightning_mvp.zoo import ModelZoo, migrate
whole, left = migrate.write_whole, [int(sys.argv[3])]
def write(*arguments):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    whole(*arguments)
migrate.write_whole = write
migrate.migrate(ModelZoo(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("files", [0, 4])
@pytest.mark.filterwarnings("ignore:Skipping a damaged")
def test_a_copy_that_is_killed_shows_nothing_and_is_cleaned_by_a_later_one(
    files: int, old: ModelZoo, tmp_path: Path
) -> None:
    before = content(old.path)
    command = [sys.executable, "-c", KILLED, old.path, tmp_path / "new", str(files)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    (hidden,) = leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [hidden.name, "old"]
    migrate(old, tmp_path / "new")
    assert hidden.exists(), "somebody may be at work on it"
    for file in (*hidden.rglob("*"), hidden):
        os.utime(file, (0, file.stat().st_mtime - 3700))
    (tmp_path / "new").rename(tmp_path / "first")
    migrate(old, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["first", "new", "old"]
    assert content(old.path) == before
    assert content(tmp_path / "first") == content(tmp_path / "new")


def test_the_command_says_what_a_search_will_cost(
    old: ModelZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mvp-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        streams = capsys.readouterr()
        return int(str(stopped.value.code)), " ".join((streams.out + streams.err).split())

    with pytest.warns(UserWarning, match="damaged"):
        code, said = ask("migrate", old.path, tmp_path / "new")
    assert code == 0
    assert f"wrote {tmp_path / 'new'}, of format 2: 6 entries" in said
    assert "1 entry has them by 1 other" in said
    assert ", format 2; " in ask("list", tmp_path / "new")[1]
    code, said = ask("migrate", tmp_path / "new", tmp_path / "newer")
    assert (code, "is of format 2 already" in said) == (1, True)
