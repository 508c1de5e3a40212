"""A folder is replaced whole, on request, and only where nothing of anybody else's is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mvp.folders import put_in_place, require_free


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "a").write_text(text)
    return path


def test_what_is_there_is_refused_unless_it_may_be_overwritten(tmp_path: Path):
    old, new = folder(tmp_path / "out", "old"), folder(tmp_path / "new", "new")
    with pytest.raises(FileExistsError, match=r"exists already and is not overwritten. .* overwrite=true replaces it"):
        put_in_place(new, old, ["a"])
    assert (old / "a").read_text() == "old"
    put_in_place(new, old, ["a"], overwrite=True)
    assert (old / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_somebody_elses_are_never_overwritten(tmp_path: Path):
    old = folder(tmp_path / "out", "old")
    (old / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"with nothing but a, to be overwritten, but got notes\.txt\. Name"):
        require_free(old, ["a"], overwrite=True)
    with pytest.raises(FileExistsError, match="but got a file"):
        require_free(old / "a", ["a"], overwrite=True)
    assert (old / "notes.txt").read_text() == "mine"


def test_a_replacement_that_was_killed_half_way_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = folder(tmp_path / "out", "old"), folder(tmp_path / "new", "new")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "new" or target.name == "out":
            raise SystemExit(-9)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(SystemExit):
        put_in_place(new, old, ["a"], overwrite=True)
    assert not old.exists()
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="exists already"):
        require_free(old, ["a"])
    assert (old / "a").read_text() == "old"


def test_a_replacement_that_fails_puts_back_what_was_there(tmp_path: Path):
    old = folder(tmp_path / "out", "old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "missing", old, ["a"], overwrite=True)
    assert (old / "a").read_text() == "old"
