"""One JSON file for each finished part of a study: written whole or not at all, never computed twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mvp.files import write_json
from lightning_mvp.study.settings import StudySettings


def open_study(folder: Path, settings: StudySettings) -> None:
    """Begin a study in ``folder``, or go on with the same one.

    Raises:
        FileExistsError: the folder holds a study with other settings, named; it is left as it is.
    """
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, settings.to_dict())
    found, wanted = json.loads(path.read_text()), settings.to_dict()
    different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if different:
        lines = "\n".join(f"  {name}: there {found.get(name)!r}, now {wanted.get(name)!r}" for name in different)
        raise FileExistsError(
            f"{folder} holds a comparison with other settings, which is not overwritten:\n{lines}\n"
            "Choose another `folder`, or remove that one."
        )


def record_path(folder: Path, part: str) -> Path:
    """Where the record of a part is, for instance ``runs/target-003--mvp.json``."""
    return folder / "runs" / f"{part}.json"


def read_record(folder: Path, part: str) -> dict[str, Any] | None:
    """A finished part's record, or None if it has yet to be done."""
    path = record_path(folder, part)
    return json.loads(path.read_text()) if path.exists() else None


def write_record(folder: Path, part: str, record: Mapping[str, Any]) -> None:
    """Keep a part's record; of two that did the same work the first stays."""
    if not record_path(folder, part).exists():
        write_json(record_path(folder, part), dict(record), overwrite=True)
