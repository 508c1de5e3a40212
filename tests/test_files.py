from __future__ import annotations

import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from lightning_mvp import files
from lightning_mvp.files import write_whole


def _race(path: Path, number: int) -> int:
    try:
        write_whole(path, bytes([number]) * 100_000)
    except FileExistsError:
        return 0
    return number


def test_of_many_writers_one_wins_and_its_file_is_whole(tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        wins = pool.starmap(_race, [(tmp_path / "file", number) for number in range(1, 13)])
    winners = [number for number in wins if number]
    assert len(winners) == 1
    assert (tmp_path / "file").read_bytes() == bytes(winners) * 100_000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_existing_file_stays_unless_overwritten(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(files.os, "link", _no_links)
    path = write_whole(tmp_path / "deep" / "file", b"first")
    with pytest.raises(FileExistsError):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    write_whole(path, b"second", overwrite=True)
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


def _no_links(source: str, target: Path) -> None:
    raise OSError("no hard links here")


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = write_whole(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
