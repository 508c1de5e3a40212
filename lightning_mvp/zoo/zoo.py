"""A zoo: a folder with the pruned models of many source tasks, all from one backbone. Needs no torch to read or write.

```
<zoo>/zoo.json                 format version, backbone recipe, group sizes, θ⁰'s fingerprint, how prototypes are made
<zoo>/theta0.safetensors       the pre-trained weights, once
<zoo>/tasks/<id>.safetensors   one file per entry
<zoo>/catalogue.safetensors    of large zoos: what a search needs of all entries, made anew where it is stale
```
"""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lightning_mvp.files import UnseenFileError, make_folder, read_listed, with_words
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry, validate
from lightning_mvp.zoo.entry_file import (
    MOST_HEAD_BYTES,
    SUFFIX,
    Storage,
    naming,
    read_entry,
    read_header,
    shown,
    write_entry,
)
from lightning_mvp.zoo.index import INDEX, Index, create_index, read_index, read_theta0, require_same
from lightning_mvp.zoo.leftovers import remove_leftovers
from lightning_mvp.zoo.strict_json import JSON_LIMIT

T = TypeVar("T")


class ModelZoo:
    """The pruned models in a folder: a read-only mapping from entry names (sorted) to entries, with `add` and `remove`.

    Args:
        path: The folder of an existing zoo; `ModelZoo.create` makes one.

    Raises:
        FileNotFoundError: The folder is missing or holds no zoo.
        ValueError: The folder's `zoo.json` cannot be read or is of another version.

    Example:
        >>> import tempfile
        >>> theta0 = {"conv.weight": np.ones((4, 3, 1, 1), np.float32)}
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), recipe=None, theta0=theta0, group_sizes={"conv": 4})
        >>> len(zoo), zoo.group_sizes
        (0, {'conv': 4})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._index = read_index(self.path)
        except UnseenFileError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            state = f"it holds no {INDEX}" if self.path.is_dir() else "there is no such folder"
            raise FileNotFoundError(
                f"Expected a zoo at {self.path}, but {state}. Fill one with `mvp-prune`."
            ) from error

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe: Mapping[str, Any] | None,
        theta0: Mapping[str, np.ndarray],
        group_sizes: Mapping[str, int],
        preprocessing: Mapping[str, Any] | None = None,
    ) -> ModelZoo:
        """Make the zoo of this backbone, or open it if it is there already: many jobs may call this at once.

        Args:
            path: The zoo's folder; missing parents are made.
            recipe: The backbone's recipe (plain JSON), or None for a backbone that only you can build.
            theta0: The pre-trained weights of the dense backbone, by their names in its state dict.
            group_sizes: The number of units of each group, in the order of the groups.
            preprocessing: How θ⁰ sees the images of all prototypes: a task's facts without ``name`` and ``classes``.
                A search of a large zoo then runs θ⁰ once. What fills zoos gives that of the first entry's task. None:
                prototypes are made as each task's own facts say. A zoo that is there keeps what it has.

        Raises:
            ValueError: There is a zoo of another backbone, of other groups or of another θ⁰; the message says which.
        """
        path = Path(path)
        index = Index.from_backbone(recipe, theta0, group_sizes, preprocessing)
        require_same(path, index, create_index(path, index, theta0))
        zoo = cls(path)
        zoo.theta0()
        return zoo

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The backbone's recipe, or None if only you can build it."""
        return self._index.recipe

    @property
    def group_sizes(self) -> dict[str, int]:
        """Units per group, in the order of the groups."""
        return self._index.groups

    @property
    def theta0_fingerprint(self) -> str:
        """SHA-256 of the pre-trained weights."""
        return self._index.theta0

    @property
    def version(self) -> int:
        """Of the format of `zoo.json`: 1 or 2."""
        return self._index.version

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How θ⁰ sees the images that prototypes are made of; None: as each task's own facts say, as in version 1."""
        return self._index.preprocessing

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, groups and θ⁰: what all entries of this zoo have in common."""
        return self._index.fingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries, sorted; damaged ones included.

        Raises:
            FileNotFoundError: The zoo's folder is gone.
        """
        try:
            files = os.listdir(self.path / "tasks")
        except FileNotFoundError:
            # A zoo without entries has no such folder yet; one that is no longer mounted must not look like one.
            self._require_unchanged()
            files = []
        return tuple(sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX)))

    @property
    def configs(self) -> dict[str, tuple[str, ...]]:
        """Hash of the pruning config → names of its entries, both sorted."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition("--")[2], []).append(name)
        return {key: tuple(found[key]) for key in sorted(found)}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not _is_file_name(name):
            return False
        try:
            self.file(name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def __repr__(self) -> str:
        return f"ModelZoo({str(self.path)!r}, entries={len(self)}, configs={list(self.configs)})"

    def __getitem__(self, name: str) -> ZooEntry:
        """Read and verify one entry.

        Raises:
            KeyError: There is no entry of that name; the message gives similar names.
            DamagedEntryError: The file is damaged or belongs to another zoo.
        """
        dense = sum(array.nbytes for array in self._theta0.values())
        most = JSON_LIMIT + dense + 5 * sum(self.group_sizes.values()) + MOST_HEAD_BYTES
        entry = self._read(name, lambda path: read_entry(path, most))
        self._require_ours(name, entry.info)
        with naming(self.file(name)):
            self._check(entry)
        return entry

    def header(self, name: str, prototypes: bool = False) -> dict[str, Any]:
        """What an entry says about itself, read without its tensors: for listings, where all of it is not needed.

        Args:
            name: The entry's name.
            prototypes: Whether to read the prototypes as well.

        Returns:
            ``{"name", "facts", "config", "groups" (group → units), "info", "sha256"}``, and with `prototypes` also
            ``"has_head"`` and ``"prototypes"`` (an array or None). The SHA-256 is what the file says; ``zoo[name]``
            reads the tensors and compares it.

        Raises:
            KeyError: There is no entry of that name; the message gives similar names.
            DamagedEntryError: The header is damaged or belongs to another zoo.
        """
        header = self._read(name, lambda path: read_header(path, prototypes))
        self._require_ours(name, header["info"])
        with naming(self.file(name)):
            self._check_groups(header["groups"])
        return header

    def entries(self, config: str | None = None, names: Iterable[str] | None = None) -> Iterator[ZooEntry]:
        """The entries by name: those of one config's hash, those of these names, or all.

        They are read one after the other, as they are asked for; see `each` for damaged ones.
        """
        if config is not None and config not in self.configs:
            raise ValueError(f"Expected `config` to be one of {list(self.configs)}, but got {config!r}.")
        listed = self.names if config is None else self.configs[config]
        return self.each(self.__getitem__, listed if names is None else sorted(names))

    def each(self, read: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """``read(name)`` for each of these entries, one after the other, as they are asked for.

        Damaged entries are named in a warning each and left out; so are those that were removed since they were listed.
        """
        for name in names:
            try:
                found = read(name)
            except DamagedEntryError as error:
                warnings.warn(f"Skipping a damaged zoo entry: {error}", stacklevel=2)
            except KeyError:
                continue
            else:
                yield found

    def add(self, entry: ZooEntry, overwrite: bool = False, storage: Storage = "float32") -> Path:
        """Validate `entry` against this zoo and write it whole or not at all. Then clean up after killed writers.

        Args:
            entry: The entry to add.
            overwrite: Whether to replace an entry of that name.
            storage: "bfloat16" rounds all that is float32 and takes half the bytes; it is read as float32 again.

        Raises:
            ValueError: Masks, weights or values do not fit this zoo's backbone, or can't be stored as wished, or the
                folder holds another zoo by now; nothing is written.
            FileExistsError: The zoo has such an entry and `overwrite` is false.
            FileNotFoundError: The zoo's folder is gone; it is not made anew.
            OSError: The entry could not be written (disk full, read-only, no permission …); the zoo is as it was, and
                the message says what to do.
            UnseenFileError: The entry was written, but the file system does not show it, or may lose it.
        """
        validate(entry)
        self._check(entry)
        stamped = replace(entry, info={**entry.info, "zoo": self.fingerprint})
        self._require_unchanged()
        try:
            make_folder(self.path / "tasks")
            path = write_entry(self.file(entry.name), stamped, overwrite=overwrite, parents=False, storage=storage)
        except FileExistsError as error:
            raise FileExistsError(
                f"The zoo at {self.path} has an entry {entry.name!r} already. Pass `overwrite=True` to replace it."
            ) from error
        except UnseenFileError:
            raise
        except OSError as error:
            words = f"The zoo at {self.path} is as it was, without this entry {entry.name!r}. {error.strerror or error}"
            raise with_words(error, words) from error
        with contextlib.suppress(OSError):  # The entry is there, and cleaning can wait.
            now = path.stat().st_mtime
            for folder in (self.path, path.parent):
                remove_leftovers(folder, now)
        return path

    def file(self, name: str) -> Path:
        """Where the entry of that name is stored, whether it is there or not."""
        return self.path / "tasks" / f"{name}{SUFFIX}"

    def remove(self, name: str) -> None:
        """Delete one entry, damaged or not."""
        if name not in self:
            raise KeyError(f"No entry {name!r} in the zoo at {self.path}.")
        self.file(name).unlink()

    def verify(self) -> dict[str, str | None]:
        """Read every entry: name → what is wrong with it, or None."""
        problems: dict[str, str | None] = {}
        for name in self.names:
            try:
                self[name]
                problems[name] = None
            except DamagedEntryError as error:
                problems[name] = str(error)
            except KeyError:
                pass  # removed since the names were listed
        return problems

    def theta0(self) -> dict[str, np.ndarray]:
        """The pre-trained weights all entries come from, read once and verified against their fingerprint.

        Raises:
            ValueError: The file is damaged or of another θ⁰.
        """
        return dict(self._theta0)

    @cached_property
    def _theta0(self) -> dict[str, np.ndarray]:
        return read_theta0(self.path, self.theta0_fingerprint)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        """What `read` makes of an entry's file."""
        if not isinstance(name, str) or not _is_file_name(name):
            raise self._no_entry(name)
        path = self.file(name)
        try:
            return read_listed(path, read)
        except UnseenFileError as error:
            raise DamagedEntryError(f"{error.strerror or error}") from error
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise DamagedEntryError(f"{shown(path)} is a link to nothing. Restore what it names.") from None
            raise self._no_entry(name) from None

    def _no_entry(self, name: object) -> KeyError:
        names = self.names
        close = difflib.get_close_matches(str(name)[:255], names, n=3) or list(names[:3])
        return KeyError(
            f"No entry {str(name)[:255]!r} in the zoo at {self.path} with {len(names)} entries, such as {close}."
        )

    def _require_ours(self, name: str, info: dict[str, Any]) -> None:
        if info.get("zoo") != self.fingerprint:
            self._require_unchanged()
            raise DamagedEntryError(
                f"{shown(self.file(name))}: belongs to another zoo (other backbone or θ⁰). Remove it."
            )

    def _require_unchanged(self) -> None:
        """The folder still holds the zoo that was opened."""
        try:
            found = read_index(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"The zoo at {self.path} was there when it was opened, but its {INDEX} is gone, so nothing was read or "
                "written. Was the folder moved, removed or unmounted? Bring it back and try again."
            ) from error
        if found.fingerprint != self.fingerprint:
            raise ValueError(
                f"The zoo at {self.path} was replaced by another one since it was opened: "
                + "; ".join(self._index.differences(found))
                + ". Open it again."
            )

    def _check(self, entry: ZooEntry) -> None:
        """Does `entry` fit this zoo's groups and θ⁰?"""
        self._check_groups({group: len(mask) for group, mask in entry.masks.items()})
        if (
            sum(array.nbytes for array in (*entry.head.values(), entry.prototypes) if array is not None)
            > MOST_HEAD_BYTES
        ):
            raise ValueError(
                f"Expected head and prototypes of entry {entry.name!r} to have at most {MOST_HEAD_BYTES:,} bytes."
            )
        dense = self._theta0
        if entry.weights.keys() != dense.keys():
            differing = sorted(entry.weights.keys() ^ dense.keys())
            raise ValueError(f"Expected weights of the same names as θ⁰'s, but they differ in {differing[:5]}.")
        for name, value in entry.weights.items():
            shape, dtype = dense[name].shape, dense[name].dtype
            fits = value.ndim == len(shape) and all(
                min(1, full) <= kept <= full for kept, full in zip(value.shape, shape, strict=True)
            )
            if not fits or value.dtype != dtype:
                raise ValueError(
                    f"Expected weight {name!r} to be {dtype} cut from shape {shape}, but got {value.dtype} of shape "
                    f"{value.shape}."
                )
            if name.endswith("running_var") and (value < 0).any():
                raise ValueError(f"Expected the variances {name!r} not to be negative, but some are.")

    def _check_groups(self, sizes: Mapping[str, int]) -> None:
        if sizes != self.group_sizes:
            differing = [g for g in {**self.group_sizes, **sizes} if self.group_sizes.get(g) != sizes.get(g)]
            raise ValueError(
                "Expected masks of this zoo's groups, but they differ: "
                + ", ".join(f"{g} expected {self.group_sizes.get(g)} units, got {sizes.get(g)}" for g in differing[:5])
            )


def _is_file_name(name: str) -> bool:
    """Whether it can name a file in a folder, and no file anywhere else."""
    try:
        return "\0" not in name and os.path.basename(name) == name and len(os.fsencode(name + SUFFIX)) <= 255
    except UnicodeEncodeError:
        return False
