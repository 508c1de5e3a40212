"""Files that appear whole or not at all, so that many jobs may write to one zoo at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from time import sleep
from typing import IO, Any, TypeVar

try:
    import fcntl
except ImportError:  # Not a POSIX system: there files are never locked.
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

# About three seconds in all: what a network file system may need to show to one machine what another has written.
WAITS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
# How a network file system reports a file that it does not show yet, or that was replaced while it was open.
NOT_YET_VISIBLE = (errno.ENOENT, errno.ESTALE)

# Some file systems can't sync a folder, and some folders may be written to but not be opened for reading.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
# What to do where the system's own words do not suggest it.
_REMEDIES = {
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`), or use another disk, and try again",
    errno.ENOENT: "Its folder is gone: mount or make it again, or use another one",
    errno.ENAMETOOLONG: "Use a shorter name",
}


class UnseenFileError(OSError):
    """A file was written, or is listed by its folder, but can't be opened, or can't be made sure to stay."""


def write_whole(path: str | Path, payload: bytes, *, overwrite: bool = False, parents: bool = True) -> Path:
    """Write `payload` to a temporary file in the same folder, fsync it, then give it its name in one step.

    Without `overwrite` the first writer wins: a hard link fails where a rename would silently replace. A writer that
    is killed leaves a hidden temporary file at most.

    Args:
        path: The file to write.
        payload: All of its content.
        overwrite: Whether to replace a file that is there.
        parents: Whether to make missing folders on the way; false where a missing folder means that something is wrong.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false; what is there stays as it was.
        UnseenFileError: The file was written, but the file system does not show it, or may lose it.
        OSError: The file could not be written (disk full, read-only, no permission, folder gone: the subclass that
            Python has for it); what was there stays as it was, and the message says what to do.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder, "a.bin"), b"first")
        ...     path = write_whole(path, b"second", overwrite=True)
        ...     path.read_bytes(), os.listdir(folder)
        (b'second', ['a.bin'])
    """
    path = Path(path)
    if parents:
        make_folder(path.parent, parents=True)
    if not overwrite and os.path.lexists(path):
        raise _taken(path)
    # The file's own name may be as long as the file system allows, so only its beginning is part of the temporary one.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        _write(temporary, payload)
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # A leftover is cleaned later, and the first error says more.
            temporary.unlink()
    _sync_folder(path)
    _patiently(lambda: os.stat(path), f"{path} was written, but could not be seen")
    return path


def write_json(path: Path, value: Any, *, overwrite: bool = False) -> Path:
    """Write JSON so that readers see the whole file or none."""
    return write_whole(path, (json.dumps(value, indent=1) + "\n").encode(), overwrite=overwrite)


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder unless it is there.

    Raises:
        OSError: The folder can't be made; the message says why and what to do.
    """
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError):
            error = NotADirectoryError(errno.ENOTDIR, "a file of that name is in the way")
        raise _explained(error, folder) from error


def with_words(error: OSError, words: str) -> OSError:
    """An error of the same number, and so of the same class, that says `words`."""
    return OSError(words) if error.errno is None else OSError(error.errno, words)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, open for reading, and its size: anything else (a pipe, a device) could be waited for forever.

    Raises:
        ValueError: It is no regular file.
        OSError: It can't be opened.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        yield file, status.st_size


def read_listed(path: Path, read: Callable[[Path], T], *, expected: bool = False) -> T:
    """``read(path)``, tried again for some seconds while the folder lists the file but it can't be opened.

    Network file systems may show a name before its file, or a file's old handle (ESTALE) after it was replaced.

    Args:
        path: The file to read.
        read: Opens and reads it.
        expected: Whether the file is known to be there: then it is tried again even where the folder does not list it.

    Raises:
        FileNotFoundError: There is no such file.
        UnseenFileError: The folder lists it, but it could not be opened after all the waiting.
    """

    def look() -> T:
        try:
            return read(path)
        except OSError as error:
            late = error.errno in NOT_YET_VISIBLE
            if late and (path.is_symlink() or not (expected or _is_listed(path))):
                # Without an error number it is not tried again.
                raise FileNotFoundError(f"There is no file {path}.") from error
            raise

    return _patiently(look, f"{path} is there by its folder, but could not be opened")


def lock(file: IO[bytes] | int) -> bool:
    """Lock a file that is open for writing until it is closed, or its process dies. False if another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # A file system without locks.
    return True


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder meanwhile, as :func:`lock` does a file. Gives False if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(hidden: Path, path: Path) -> None:
    """Give a folder that nobody knows of its name, in one step, and make sure that the name stays.

    Raises:
        FileExistsError: There is such a file, or a folder with files.
        UnseenFileError: It has its name, but may lose it.
    """
    try:
        os.rename(hidden, path)
    except OSError as error:
        if os.path.lexists(path):
            raise _taken(path) from error
        raise _explained(error, path) from error
    _sync_folder(path)


def _is_listed(path: Path) -> bool:
    """Whether the folder says that it holds the file. Listing a folder makes network file systems look anew."""
    try:
        return path.name in os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _patiently(look: Callable[[], T], problem: str) -> T:
    """Call `look` until it finds its file, with growing waits between, or raise an error that begins with `problem`."""
    waits = iter(WAITS)
    while True:
        try:
            return look()
        except OSError as error:
            if error.errno not in NOT_YET_VISIBLE:
                raise
            seconds = next(waits, None)
            if seconds is None:
                raise UnseenFileError(
                    f"{problem} in {sum(WAITS):.0f} s ({error.strerror}). The file system shows it late, or it was "
                    "removed: look again before you repeat any work."
                ) from error
        sleep(seconds)


def _explained(error: OSError, path: Path) -> OSError:
    remedy = _REMEDIES.get(error.errno or 0, "Mend that, or use another folder, and try again")
    return with_words(error, f"Could not write {path}: {error.strerror or error}. Nothing was changed. {remedy}.")


def _write(path: Path, payload: bytes) -> None:
    """A new file with this content, on the disk; locked while it is written, so that nobody takes it for a leftover."""
    with open(path, "xb", buffering=0) as file:
        lock(file)
        rest = memoryview(payload)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """Give `source` the name `target`, unless that is taken."""
    try:
        os.link(source, target)
    except OSError as error:
        # A network file system repeats a request whose answer was lost: then the first one was ours.
        with contextlib.suppress(OSError):
            if os.path.samefile(source, target):
                return
        if isinstance(error, FileExistsError):
            raise _taken(target) from None
        _claim_and_rename(source, target)


def _claim_and_rename(source: Path, target: Path) -> None:
    """For file systems without hard links: a hidden file, which only one writer can create, gives the right to rename.

    An exclusively created *target* would do the same, but a writer killed then would leave an empty file visible.
    """
    claim = target.with_name(f".{hashlib.sha256(target.name.encode()).hexdigest()[:32]}.claim")
    waits = iter(WAITS)
    while True:
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            break
        except FileExistsError:
            if os.path.lexists(target):
                raise _taken(target) from None
            seconds = next(waits, None)
            if seconds is None:
                raise OSError(
                    errno.EBUSY,
                    f"another job is writing it, or was killed doing so, as {claim} says. If none is, remove that file",
                ) from None
            sleep(seconds)
    try:
        if os.path.lexists(target):
            raise _taken(target)
        os.replace(source, target)
    finally:
        claim.unlink(missing_ok=True)


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists already and is never replaced silently. Choose another path, or remove it.")


def _sync_folder(path: Path) -> None:
    """Sync the folder of a new file, so that its name survives a power failure."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise UnseenFileError(
                f"{path} was written, but its folder could not be synced ({error.strerror}), so that it may be lost. "
                "Was the folder removed? Look whether the file is there before you go on."
            ) from error
