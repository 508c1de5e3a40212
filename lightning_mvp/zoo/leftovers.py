"""What killed writers leave behind, and how it goes away without touching a file that somebody still writes."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from lightning_mvp.files import hold

OLD = 3600.0

# As `write_whole` names them, and as `tempfile.mkstemp` did in its first version.
_NAME = re.compile(r"\..+\.([0-9a-f]{16}|[0-9a-z_]{8})\.tmp|\.[0-9a-f]{32}\.claim", re.DOTALL)


def leftovers(folder: Path) -> list[Path]:
    """Hidden temporary and claim files in this folder, sorted: of killed writers, and of those that are at work.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in (".a.safetensors.0123456789abcdef.tmp", "a.safetensors", ".own.tmp"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in leftovers(Path(folder))]
        ['.a.safetensors.0123456789abcdef.tmp']
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if _NAME.fullmatch(name)]


def remove_leftovers(folder: Path, now: float | None = None, older_than: float = OLD) -> list[Path]:
    """Remove those leftovers that nobody writes any more, and tell which.

    Args:
        folder: that holds them; a missing one holds none.
        now: the time by the clock of the *file system*, which may be another machine's; None asks it.
        older_than: seconds since the last write. A file that a living writer of a machine sharing its locks holds is
            never removed, however old.

    Raises:
        OSError: `now` is None and the folder can't be written to. A leftover that may not be removed just stays.
    """
    found = leftovers(folder)
    if found and now is None:
        now = _clock(folder)
    removed = []
    for path in found:
        with contextlib.suppress(OSError):  # gone already, or another user's
            if now is not None and now - path.lstat().st_mtime > older_than and _is_free(path):
                path.unlink()
                removed.append(path)
    return removed


def _clock(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


def _is_free(path: Path) -> bool:
    """Whether no process holds the file; opening a named pipe or a link here would hang or lead astray."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "r+b") as file:
        return hold(file)
