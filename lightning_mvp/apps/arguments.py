"""Arguments as people type them: file names need no quotes of Hydra's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_mvp.apps.hydra_internals import can_parse
from lightning_mvp.tasks.listing import count_class_folders
from lightning_mvp.words import counted

# A value with one of these is written in Hydra's own grammar: a list, a mapping, quotes, escapes or interpolations.
OWN_GRAMMAR = frozenset("[]{}'\"\\$")
NEVER_QUOTED = frozenset("'\"\\$")  # not even in a name of a file that is there


def quoted(arguments: Sequence[str]) -> list[str]:
    """Arguments with quotes around the values that Hydra can't read otherwise, such as file names with ``=``.

    What Hydra can read, and what isn't ``key=value``, stays as it is. Of several values with commas between them, as
    in a sweep, each is quoted.

    Example:
        >>> quoted(["checkpoint=epoch=1-step=20.ckpt", "seed=0,1", "--multirun"])
        ["checkpoint='epoch=1-step=20.ckpt'", 'seed=0,1', '--multirun']
    """
    return [_quoted(argument) for argument in arguments]


def with_folders(arguments: Sequence[str]) -> list[str]:
    """Arguments with a pattern of ``split.task``, such as ``cam-*``, replaced by the folders that it means.

    Only with ``split=folders``, where each folder below ``data.root`` is a task. Without a pattern nothing is changed.

    Raises:
        ValueError: no folder fits, several do without ``-m``, or one of them has no two classes with images and
            ``split.empty=skip`` does not leave it out.
    """
    typed = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    pattern = typed.get("split.task", "").strip("'\"")
    if typed.get("split") != "folders" or not set("*?") & set(pattern):
        return list(arguments)
    root = Path(typed.get("data.root", "").strip("'\"")).expanduser()
    if not typed.get("data.root") or not root.is_dir():
        raise ValueError(
            f"Expected data.root=FOLDER on the command line, a folder of one folder for each task, beside "
            f"split.task={pattern}, but got {typed.get('data.root')!r}."
        )
    names = sorted(path.name for path in root.glob(pattern) if path.is_dir() and not path.name.startswith("."))
    empty = [name for name in names if count_class_folders(root / name) < 2]
    if empty and typed.get("split.empty") != "skip":
        raise ValueError(
            f"Expected each folder that split.task={pattern} means to hold two or more class folders with images, but "
            f"{len(empty)} of {len(names)} do not: {', '.join(empty[:10])}. Fill or remove them, or leave them out: "
            "split.empty=skip."
        )
    names = [name for name in names if name not in empty]
    if not names:
        raise ValueError(f"Expected split.task={pattern} to mean folders below {root}, but there are none with images.")
    sweeps = {"-m", "--multirun"} & set(arguments)
    if len(names) > 1 and not sweeps:
        raise ValueError(
            f"Expected -m with split.task={pattern}, which means {len(names)} folders, but got none. Add -m."
        )
    if empty:
        print(f"Leaving out {counted(len(empty), 'folder')} without two classes of images: {', '.join(empty[:10])}")
    tasks = ",".join("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names)
    return [f"split.task={tasks}" if argument.startswith("split.task=") else argument for argument in arguments]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or NEVER_QUOTED & set(value) or can_parse(argument):
        return argument
    if os.path.exists(value):  # brackets and commas are part of its name
        parts = [f"'{value}'"]
    elif "=" in value and not OWN_GRAMMAR & set(value):
        parts = [f"'{part}'" if "=" in part else part for part in value.split(",")]
    else:
        return argument
    candidate = f"{key}={','.join(parts)}"
    return candidate if can_parse(candidate) else argument
