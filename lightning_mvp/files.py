"""Files that appear whole or not at all, so that many jobs may write to one zoo at once."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, payload: bytes, *, overwrite: bool = False) -> Path:
    """Write `payload` to a temporary file in the same folder, fsync it, then give it its name in one step.

    Without `overwrite` the first writer wins: a hard link fails where a rename would silently replace.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false; what is there stays as it was.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder, "a.bin"), b"first")
        ...     path = write_whole(path, b"second", overwrite=True)
        ...     path.read_bytes(), os.listdir(folder)
        (b'second', ['a.bin'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp makes private files; a zoo is shared, so the usual permissions apply.
            os.chmod(temporary, 0o666 & ~_umask())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise FileExistsError(f"{target} exists already and is never replaced silently.") from None
    except OSError:
        # File systems without hard links: an exclusive create still lets exactly one writer through.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(source, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any, *, overwrite: bool = False) -> Path:
    """Write JSON so that readers see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, (json.dumps(value, indent=1) + "\n").encode(), overwrite=overwrite)
