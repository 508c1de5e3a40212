"""Folders of results that appear whole, and are replaced on request only."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path


def require_free(output: Path, ours: Collection[str], overwrite: bool = False) -> None:
    """Refuse a folder that is there already, unless it may be overwritten and has nothing in it but ours.

    Args:
        output: where results will go; what a killed :func:`put_in_place` moved aside is put back first.
        ours: names that a folder of such results may hold.
        overwrite: whether it may be replaced.

    Raises:
        FileExistsError: it is there; the message says what to do.
    """
    aside = _aside(output)
    if aside.exists() and not output.exists():
        aside.rename(output)
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"{output} exists already and is not overwritten. Name another output, or remove it. overwrite=true "
            "replaces it once the new one is done."
        )
    foreign = (
        sorted({path.name for path in output.iterdir()} - {*ours, "__pycache__"}) if output.is_dir() else ["a file"]
    )
    if foreign:
        raise FileExistsError(
            f"Expected {output} to be a folder with nothing but {', '.join(sorted(ours))}, to be overwritten, but got "
            f"{foreign[0]}. Name another output, or move that elsewhere."
        )


def put_in_place(made: Path, output: Path, ours: Collection[str], overwrite: bool = False) -> None:
    """Give a finished folder its name; what was there stays until it has it.

    Args:
        made: the new folder, on the same file system.
        output: its name.
        ours: as in :func:`require_free`.
        overwrite: whether what is there may be replaced.

    Raises:
        FileExistsError: as in :func:`require_free`.
    """
    require_free(output, ours, overwrite)
    aside = _aside(output)
    replaces = output.exists()
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)
        output.rename(aside)
    try:
        made.rename(output)
    except OSError:
        if replaces:
            aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")
