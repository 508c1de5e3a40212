"""One JSON file for each finished part of a study, so that no part is computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mvp.files import write_json
from lightning_mvp.study.methods import ORACLE, Trial
from lightning_mvp.study.study_settings import StudySettings

# These settings may change after a study has begun, because the record of each run has those it was made with.
MAY_CHANGE = {"methods", "fewer", "trials", "variants", "growths", "tuned", "label"}


def open_study(folder: Path, settings: StudySettings) -> None:
    """Begin a study in ``folder``, or go on with the same one; methods and trials may be added.

    Raises:
        FileExistsError: the folder holds a study with other settings, or a run that was made with others, which is
            named. Then nothing is changed.
    """
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, settings.to_dict())
    found, wanted = read_settings(folder).to_dict(), settings.to_dict()
    different = sorted(name for name in {*found, *wanted} - MAY_CHANGE if found.get(name) != wanted.get(name))
    if different:
        lines = "\n".join(f"  {name}: there {found.get(name)!r}, now {wanted.get(name)!r}" for name in different)
        raise FileExistsError(
            f"{folder} holds a comparison with other settings, which is not overwritten:\n{lines}\n"
            "Choose another `folder`, or remove that one."
        )
    on_targets = [*settings.compared(), *settings.varied()]
    _refuse_other_runs(folder, settings.target_kind, settings.targets, on_targets)
    _refuse_other_runs(folder, "development", settings.split.get("development", 0), settings.tried())
    if found != wanted:
        write_json(path, wanted, overwrite=True)


def _refuse_other_runs(folder: Path, kind: str, tasks: int, trials: Sequence[Trial]) -> None:
    for trial in trials:
        wanted = {"method": trial.method, "steps": trial.steps, "changes": json.loads(json.dumps(trial.changes))}
        for index in range(tasks):
            part = f"{kind}-{index:03d}--{trial.name}"
            record = read_record(folder, part) or wanted
            made = {key: record[key] for key in wanted}
            if made != wanted:
                raise FileExistsError(
                    f"{record_path(folder, part)} was made with {made}, and now it would be made with {wanted}. "
                    "Nothing is overwritten: remove such records, give the trial another name, or choose another "
                    "`folder`."
                )


def read_settings(folder: Path) -> StudySettings:
    """The settings of the study in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = folder / "settings.json"
    if not path.exists():
        raise FileNotFoundError(f"Expected a study in {folder}, but found no settings.json. Run mvp-compare first.")
    return StudySettings.from_dict(json.loads(path.read_text()))


def record_path(folder: Path, part: str) -> Path:
    """Where the record of a part is, for instance ``runs/target-003--mvp@100.json``."""
    return folder / "runs" / f"{part}.json"


def rank_part(task: str, similarity: str) -> str:
    """The part that ranks the zoo for a task. A ranking by LEEP also counts shared classes, so it serves the oracle.

    Example:
        >>> rank_part("target-003", "leep"), rank_part("target-003", "cover")
        ('rank--target-003', 'rank-cover--target-003')
    """
    return f"rank{'' if similarity in ('leep', ORACLE) else f'-{similarity}'}--{task}"


def read_record(folder: Path, part: str) -> dict[str, Any] | None:
    """A finished part's record, or None if it has yet to be done."""
    path = record_path(folder, part)
    return json.loads(path.read_text()) if path.exists() else None


def require_record(folder: Path, part: str) -> dict[str, Any]:
    """The record of a part that earlier waves have done."""
    record = read_record(folder, part)
    assert record is not None, f"{part} is made before what needs it"
    return record


def read_records(folder: Path, parts: Iterable[str]) -> list[dict[str, Any]]:
    """The records of those parts that are finished, in their order."""
    return [record for part in parts if (record := read_record(folder, part)) is not None]


def write_record(folder: Path, part: str, record: Mapping[str, Any]) -> None:
    """Keep a part's record. Where two processes did the same part, the first record stays."""
    if not record_path(folder, part).exists():
        write_json(record_path(folder, part), dict(record), overwrite=True)
