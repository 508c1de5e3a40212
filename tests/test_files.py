from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lightning_mvp import files
from lightning_mvp.files import UnseenFileError, read_listed, write_whole
from lightning_mvp.zoo.leftovers import leftovers, remove_leftovers

slow = pytest.mark.slow
both = pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they would have is told."""
    seconds: list[float] = []
    monkeypatch.setattr(files, "sleep", seconds.append)
    return seconds


def _no_links(source: str, target: Path) -> None:
    raise OSError("no hard links here")


def _race(path: Path, number: int, links: bool) -> int:
    if not links:
        files.os.link = _no_links  # type: ignore[assignment]
    try:
        write_whole(path, bytes([number]) * 100_000)
    except FileExistsError:
        return 0
    return number


@both
def test_of_many_writers_one_wins_and_its_file_is_whole(links: bool, tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        wins = pool.starmap(_race, [(tmp_path / "file", number, links) for number in range(1, 13)])
    winners = [number for number in wins if number]
    assert len(winners) == 1
    assert (tmp_path / "file").read_bytes() == bytes(winners) * 100_000
    assert os.listdir(tmp_path) == ["file"]


@both
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


@both
def test_the_first_wins_also_when_both_have_begun(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "file", files._write

    def other_is_faster(temporary: Path, payload: bytes) -> None:
        write(temporary, payload)
        path.write_bytes(b"other")

    monkeypatch.setattr(files, "_write", other_is_faster)
    if not links:
        monkeypatch.setattr(files.os, "link", _no_links)
    with pytest.raises(FileExistsError, match="never replaced silently"):
        write_whole(path, b"ours")
    assert path.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["file"]


def _killed_at_line(number: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process that is gone before it executes the number-th line of files.py; False if it has fewer."""
    child = os.fork()
    if child == 0:
        lines = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                lines += 1
                if lines == number:
                    os._exit(7)  # no finally, no destructor: like SIGKILL
            return trace

        sys.settrace(trace)
        try:
            act()
        except FileExistsError:
            pass
        finally:
            sys.settrace(None)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("overwrite", [False, pytest.param(True, marks=slow)], ids=["new", "overwrite"])
@pytest.mark.parametrize("links", [True, pytest.param(False, marks=slow)], ids=["hard links", "no hard links"])
def test_killed_before_any_line_nothing_half_is_visible_and_what_is_left_goes_away(
    links: bool, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    if not links:
        monkeypatch.setattr(files.os, "link", _no_links)
    old, new = b"old" * 1000, b"new" * 1000
    number, seen, left = 0, set(), 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "file"
        if overwrite:
            write_whole(path, old)
        if not _killed_at_line(number, lambda path=path: write_whole(path, new, overwrite=overwrite)):
            break
        hidden = leftovers(folder)
        left += len(hidden)
        assert set(os.listdir(folder)) <= {"file", *(file.name for file in hidden)}
        content = path.read_bytes() if path.exists() else None
        assert content in ({old, new} if overwrite else {None, new})
        seen.add(content)

        now = folder.stat().st_mtime
        assert remove_leftovers(folder, now) == []
        assert remove_leftovers(folder, now + 3700) == hidden
        if content is None:
            write_whole(path, new)
        assert set(os.listdir(folder)) == {"file"}
    assert number > 20
    assert left > 5
    assert seen == ({old, new} if overwrite else {None, new})


def test_a_claim_of_a_killed_writer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.setattr(files.os, "link", _no_links)
    path = tmp_path / "file"
    monkeypatch.setattr(files.os, "replace", lambda *_: claims.extend(tmp_path.glob(".*.claim")))
    claims: list[Path] = []
    with pytest.raises(UnseenFileError):
        write_whole(path, b"whole")
    (claim,) = claims
    claim.touch()
    with pytest.raises(OSError, match=f"another job is writing it, or was killed.*{claim}.*remove that file") as caught:
        write_whole(path, b"whole")
    assert caught.value.errno == errno.EBUSY
    assert slept[-len(files.WAITS) :] == list(files.WAITS)
    assert os.listdir(tmp_path) == [claim.name]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = write_whole(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_name_as_long_as_the_file_system_allows_will_do(tmp_path: Path) -> None:
    assert write_whole(tmp_path / ("n" * 255), b"whole").read_bytes() == b"whole"
    with pytest.raises(OSError, match="Use a shorter name"):
        write_whole(tmp_path / ("n" * 256), b"whole")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whatever_fails_while_writing_the_old_file_stays_and_the_error_keeps_its_number(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_whole(tmp_path / "file", b"old")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fails)
    with pytest.raises(OSError, match=f"Could not write {path}: {os.strerror(number)}. Nothing was changed") as caught:
        write_whole(path, b"new", overwrite=True)
    assert caught.value.errno == number
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:  # as a network file system does after a lost answer
        link(source, target)
        link(source, target)

    monkeypatch.setattr(files.os, "link", repeated)
    assert write_whole(tmp_path / "file", b"whole").read_bytes() == b"whole"


class _Late:
    """A file system that shows a path only after some seconds of a clock that moves when somebody sleeps."""

    def __init__(self, path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOENT) -> None:
        self.path, self.number, self.left = path, number, seconds
        monkeypatch.setattr(files, "sleep", self.sleep)
        for name in ("stat", "open", "lstat"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def sleep(self, seconds: float) -> None:
        self.left -= seconds

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.left > 0 and path == self.path:
                raise OSError(self.number, os.strerror(self.number), str(path))
            return call(path, *args, **kwargs)

        return wrapped


@pytest.mark.parametrize("number", LATE := [errno.ENOENT, errno.ESTALE])
def test_a_new_file_that_is_seen_late_is_waited_for(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    late = _Late(path, 2.0, monkeypatch, number)
    assert write_whole(path, b"whole") == path
    assert late.left <= 0, "it was waited for"


def test_a_new_file_that_is_never_seen_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    late = _Late(path, 60.0, monkeypatch)
    with pytest.raises(UnseenFileError, match=f"{path} was written, but could not be seen in 3 s.*look again before"):
        write_whole(path, b"whole")
    late.left = 0
    assert path.read_bytes() == b"whole", "it is there all the same"


@pytest.mark.parametrize("number", LATE)
def test_a_listed_file_that_cannot_be_opened_yet_is_tried_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_whole(tmp_path / "file", b"whole")
    late = _Late(path, 2.0, monkeypatch, number)

    def read(path: Path) -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        with open(descriptor, "rb") as file:
            return file.read()

    assert read_listed(path, read) == b"whole"
    late.left = 60.0
    with pytest.raises(UnseenFileError, match=r"could not be opened in 3 s.*shows it late"):
        read_listed(path, read)
    late.left = 60.0
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_listed(tmp_path / "other", lambda path: path.read_bytes())
    assert late.left == 60.0, "what is not even listed is not waited for"


def test_a_folder_that_cannot_be_synced_is_said_unless_the_file_system_never_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, numbers = os.fsync, iter((errno.EINVAL, errno.EIO))

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            number = next(numbers)
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", no_folders)
    write_whole(tmp_path / "one", b"whole")
    with pytest.raises(UnseenFileError, match="two was written, but its folder could not be synced"):
        write_whole(tmp_path / "two", b"whole")
