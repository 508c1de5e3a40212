"""A copy of a zoo of format 1 in format 2, which says in which preprocessing prototypes are made. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_mvp.files import lock_folder, make_folder, open_regular, publish_folder, write_whole
from lightning_mvp.zoo.entry_file import SEEN_BY
from lightning_mvp.zoo.index import INDEX, THETA0, Index
from lightning_mvp.zoo.leftovers import MINIMUM_AGE, leftovers
from lightning_mvp.zoo.seen_by import preprocessing_of, require_preprocessing
from lightning_mvp.zoo.waves import WAVES
from lightning_mvp.zoo.zoo import ModelZoo


def migrate(zoo: ModelZoo, path: str | Path) -> tuple[ModelZoo, Counter[str]]:
    """Copy a zoo of format 1 into one of format 2, which appears whole or not at all. The old one is only read.

    The copy's preprocessing is that in which most prototypes were made. Entries are copied byte for byte, so that those
    in another preprocessing keep saying so, and cost a search a pass of θ⁰ of their own until they are made anew.

    Args:
        zoo: The zoo of format 1.
        path: The folder of the copy; there must be nothing yet. Missing parents are made.

    Returns:
        The copy, and how many prototypes were made in each preprocessing, as JSON, the most frequent first.

    Raises:
        ValueError: The zoo is of format 2, its θ⁰ is damaged, a file is no regular file, or `path` is inside of it.
        FileExistsError: There is something at `path`.
        OSError: A file can't be read, or the copy can't be written; nothing is left of it.

    Example:
        >>> import tempfile, numpy as np
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2})
        >>> migrate(zoo, "copy")
        Traceback (most recent call last):
        ValueError: Expected a zoo of format 1, but ... is of format 2 already. Copy its folder if you need another one.
    """
    path = Path(path)
    if zoo.version != 1:
        raise ValueError(
            f"Expected a zoo of format 1, but {zoo.path} is of format {zoo.version} already. Copy its folder if you "
            "need another one."
        )
    if zoo.path.resolve() in (path.resolve(), *path.resolve().parents):
        raise ValueError(f"Expected another folder than that of the zoo, {zoo.path}, but got {path} in it.")
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already, and nothing is overwritten. Give the copy another name.")
    theta0, counts = zoo.theta0(), _preprocessings(zoo)
    most = json.loads(next(iter(counts))) if counts else None
    index = Index.from_backbone(zoo.recipe, theta0, zoo.group_sizes, most)
    make_folder(path.parent, parents=True)
    _remove_leftovers(path)
    hidden = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    make_folder(hidden)
    try:
        with lock_folder(hidden):
            write_whole(hidden / INDEX, index.text.encode())
            for file in _files(zoo):
                _copy(zoo.path / file, hidden / file)
            publish_folder(hidden, path)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return ModelZoo(path), counts


def _files(zoo: ModelZoo) -> Iterator[Path]:
    """All that a zoo holds beside `zoo.json`, but for its catalogue, which is made anew."""
    yield Path(THETA0)
    yield from (zoo.file(name).relative_to(zoo.path) for name in zoo.names)
    yield from (Path(WAVES, file.name) for file in sorted((zoo.path / WAVES).glob("[!.]*.json")))


def _copy(file: Path, copy: Path) -> None:
    try:
        with open_regular(file) as (stream, _):
            content = stream.read()
    except FileNotFoundError:
        if file.is_symlink():
            raise
        return  # it was removed since the zoo was listed
    except ValueError as error:
        raise ValueError(f"{file} can't be copied: {error}. Remove it first.") from error
    write_whole(copy, content)


def _preprocessings(zoo: ModelZoo) -> Counter[str]:
    """The preprocessings in which prototypes were made, as JSON, each with its number of entries, most frequent first.

    Damaged entries are named in a warning each, and copied as they are; facts that can't be used count for nothing.
    """
    found: Counter[str] = Counter()
    for header in zoo.each(lambda name: zoo.header(name, prototypes=True), zoo.names):
        with contextlib.suppress(ValueError):
            if header["prototypes"] is not None:
                seen_by: Mapping[str, Any] = header.get(SEEN_BY) or preprocessing_of(header["facts"])
                found[json.dumps(require_preprocessing(seen_by))] += 1
    return Counter(dict(found.most_common()))


def _remove_leftovers(path: Path) -> None:
    """Remove what killed copies of this name have left for an hour, unless somebody is still at work on it."""
    for folder in leftovers(path.parent):
        if folder.name.startswith(f".{path.name[:40]}.") and folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(OSError), lock_folder(folder) as free:
                newest = max(file.lstat().st_mtime for file in (folder, *folder.rglob("*")))
                if free and time.time() - newest > MINIMUM_AGE:
                    shutil.rmtree(folder)
