"""Files that appear whole or not at all, so that many jobs may write to one zoo at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import IO, Any, TypeVar

try:
    import fcntl
except ImportError:  # not a POSIX system: the age of a leftover decides alone
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

# About three seconds in all: what a network file system may need to show to one machine what another has written.
WAITS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
LATE = (errno.ENOENT, errno.ESTALE)

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
_TO_DO = {
    errno.ENOSPC: "Free space on its disk and try again",
    errno.EDQUOT: "Free some of your quota on its disk and try again",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`), or use another disk, and try again",
    errno.EROFS: "Use a folder that can be written to, or mount this one for writing",
    errno.EACCES: "Use a folder that you may write to, or ask for the permission",
    errno.EPERM: "Use a folder that you may write to, or ask for the permission",
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
        path: of the file.
        payload: all of its content.
        overwrite: replace what is there.
        parents: make the folders on the way; false where a missing one means that something is wrong.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false; what is there stays as it was.
        UnseenFileError: it was written, but the file system does not show it, or may lose it.
        OSError: it could not be written (disk full, read-only, no permission, folder gone: the subclass that Python has
            for it); what was there stays as it was, and the message says what to do.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder, "a.bin"), b"first")
        ...     path = write_whole(path, b"second", overwrite=True)
        ...     path.read_bytes(), os.listdir(folder)
        (b'second', ['a.bin'])
    """
    path = Path(path)
    # A name of a few letters and a token: the file's own may be as long as the file system allows.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        if parents:
            make_folder(path.parent, parents=True)
        if not overwrite and os.path.lexists(path):
            raise _taken(path)
        try:
            _write(temporary, payload)
            if overwrite:
                os.replace(temporary, path)
            else:
                _link(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # a leftover is cleaned later; the first error says more
                temporary.unlink()
    except FileExistsError:
        raise
    except OSError as error:
        raise _explained(error, path) from error
    _make_sure_of(path)
    return path


def write_json(path: Path, value: Any, *, overwrite: bool = False) -> Path:
    """Write JSON so that readers see the whole file or none."""
    return write_whole(path, (json.dumps(value, indent=1) + "\n").encode(), overwrite=overwrite)


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder unless it is there.

    Raises:
        OSError: it can't be made; the message says why and what to do.
    """
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except FileExistsError as error:
        raise _explained(NotADirectoryError(errno.ENOTDIR, "a file of that name is in the way"), folder) from error
    except OSError as error:
        raise _explained(error, folder) from error


def with_words(error: OSError, words: str) -> OSError:
    """An error of the same number, and so of the same class, that says `words`."""
    return OSError(words) if error.errno is None else OSError(error.errno, words)


def read_listed(path: Path, read: Callable[[Path], T], *, expected: bool = False) -> T:
    """``read(path)``, tried again for some seconds while the folder lists the file but it can't be opened.

    Network file systems may show a name before its file, or a file's old handle (ESTALE) after it was replaced.

    Args:
        path: of the file.
        read: opens it.
        expected: the file is known to be there, so try again even where the folder does not list it yet.

    Raises:
        FileNotFoundError: there is no such file.
        UnseenFileError: it is listed, but could not be opened after all the waiting.
    """

    def look() -> T:
        try:
            return read(path)
        except OSError as error:
            if error.errno not in LATE or (not path.is_symlink() and (expected or is_listed(path))):
                raise
            # Without errno: not one of those that are tried again.
            raise FileNotFoundError(f"There is no file {path}.") from error

    try:
        return _patiently(look)
    except OSError as error:
        if error.errno not in LATE:
            raise
        raise UnseenFileError(
            f"{path} is there by its folder, but could not be opened in {sum(WAITS):.0f} s ({error.strerror}). The "
            "file system shows it late, or it is being removed: look again."
        ) from error


def is_listed(path: Path) -> bool:
    """Whether the folder says that it holds the file. Listing a folder makes network file systems look anew."""
    try:
        return path.name in os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False


def hold(file: IO[bytes]) -> bool:
    """Lock a file that is open for writing until it is closed, or its process dies. False if another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _patiently(look: Callable[[], T]) -> T:
    """Call `look` until it finds its file, with growing waits between; the last error is raised."""
    for seconds in WAITS:
        try:
            return look()
        except OSError as error:
            if error.errno not in LATE:
                raise
        sleep(seconds)
    return look()


def _explained(error: OSError, path: Path) -> OSError:
    reason = error.strerror or str(error)
    if "Nothing was changed" in reason:
        return error
    to_do = _TO_DO.get(error.errno or 0, "Mend that and try again")
    return with_words(error, f"Could not write {path}: {reason}. Nothing was changed. {to_do}.")


def _write(path: Path, payload: bytes) -> None:
    """A new file with this content, on the disk; held while it is written, so that nobody takes it for a leftover."""
    with open(path, "xb", buffering=0) as file:
        hold(file)
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
    return FileExistsError(f"{path} exists already and is never replaced silently.")


def _make_sure_of(path: Path) -> None:
    """The name shall survive a power failure, and be seen."""
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise UnseenFileError(
            error.errno,
            f"{path} was written, but its folder could not be synced ({error.strerror}), so that it may be lost. Was "
            "the folder removed? Look whether the file is there before you go on.",
        ) from error
    try:
        _patiently(lambda: os.stat(path))
    except OSError as error:
        raise UnseenFileError(
            error.errno,
            f"{path} was written, but could not be seen in {sum(WAITS):.0f} s ({error.strerror}). The file system "
            "shows it late, or its folder was removed: look again before you repeat the work.",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # only there can a folder be opened
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems can't, and some folders may be written to but not be read.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
