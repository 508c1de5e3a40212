"""What killed writers leave behind, and how it goes away without touching a file that somebody still writes."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from lightning_mvp.files import lock

# Seconds since the last write after which a leftover may be removed.
MINIMUM_AGE = 3600.0

# As `write_whole` names them, and as `tempfile.mkstemp` did in its first version.
_NAME = re.compile(r"\..+\.([0-9a-f]{16}|[0-9a-z_]{8})\.tmp|\.[0-9a-f]{32}\.claim", re.DOTALL)


def leftovers(folder: Path) -> list[Path]:
    """Hidden temporary and claim files in this folder, sorted: of killed writers, and of those that are at work.

    Example:
        >>> import tempfile
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


def remove_leftovers(folder: Path, now: float) -> list[Path]:
    """Remove those leftovers that nobody has written for an hour, and return them.

    A file that a living writer has locked is never removed, however old, if its machine shares its locks with this one.
    A leftover that may not be removed stays.

    Args:
        folder: The folder that holds them; a missing one holds none.
        now: The time by the clock of the *file system*, which may be another machine's: that of a file just written.
    """
    removed = []
    for path in leftovers(folder):
        with contextlib.suppress(OSError):  # It is gone already, or another user's.
            if now - path.lstat().st_mtime > MINIMUM_AGE and _is_free(path):
                path.unlink()
                removed.append(path)
    return removed


def _is_free(path: Path) -> bool:
    """Whether no process holds the file; opening a named pipe or a link here would hang or lead astray."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "r+b") as file:
        return lock(file)
