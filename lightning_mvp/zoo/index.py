"""What all entries of a zoo have in common, and the two files that hold it: `zoo.json` and `theta0.safetensors`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lightning_mvp.files import read_listed, write_whole
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.zoo.seen_by import require_preprocessing
from lightning_mvp.zoo.strict_json import parse_json, read_json
from lightning_mvp.zoo.tensor_file import DTYPES, open_tensors

# The first says nothing of preprocessing. Zoos of the first version are read as ever, and never written again.
VERSIONS = (1, 2)
INDEX = "zoo.json"
THETA0 = "theta0.safetensors"
# Several times the largest model in timm: a θ⁰ of more is damage, or an attack on memory.
MOST_BYTES = 16 << 30


@dataclass(frozen=True)
class Index:
    """The content of `zoo.json`.

    Args:
        recipe: The backbone's recipe, or None.
        groups: The number of units of each group, in the order of the groups.
        theta0: The fingerprint of θ⁰.
        preprocessing: How θ⁰ sees the images that prototypes are made of: a task's facts without name and classes.
            None: each task's as its own facts say. It is no part of the fingerprint.
        version: Of the format: 1 or 2.
    """

    recipe: dict[str, Any] | None
    groups: dict[str, int]
    theta0: str
    preprocessing: dict[str, Any] | None = None
    version: int = VERSIONS[-1]

    @classmethod
    def from_backbone(
        cls,
        recipe: Mapping[str, Any] | None,
        theta0: Mapping[str, np.ndarray],
        groups: Mapping[str, int],
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Index:
        """The index of a new zoo as it will be read back: what JSON turns into something else (a tuple) is turned here.

        Raises:
            ValueError: The recipe is not plain JSON, θ⁰ holds what can't be stored, or the preprocessing is none.
        """
        wrong = {str(value.dtype) for value in theta0.values()} - {str(dtype) for dtype in DTYPES.values()}
        if wrong:
            raise ValueError(f"Expected θ⁰ of {', '.join(map(str, DTYPES.values()))}, but got {', '.join(wrong)}.")
        try:
            seen_by = None if preprocessing is None else require_preprocessing(preprocessing)
        except ValueError as error:
            raise ValueError(f"Argument `preprocessing` is not usable: {error}") from error
        index = cls(None if recipe is None else dict(recipe), dict(groups), fingerprint(theta0), seen_by)
        return parse_index(parse_json(index.text))

    @property
    def text(self) -> str:
        """The file's content."""
        facts = asdict(self)
        return json.dumps({"version": facts.pop("version"), **facts}, indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, groups and θ⁰."""
        facts = [self.recipe, self.groups, self.theta0]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def differences(self, found: Index) -> list[str]:
        """A sentence for each part in which another index differs from this one."""
        parts = (("recipe", "backbone recipe"), ("groups", "groups"), ("theta0", "fingerprint of θ⁰"))
        return [
            f"{label}: expected {getattr(self, part)}, got {getattr(found, part)}"
            for part, label in parts
            if getattr(self, part) != getattr(found, part)
        ]


def parse_index(facts: Any) -> Index:
    """The index that the JSON of a `zoo.json` says.

    Raises:
        ValueError: It is damaged or of another version; the message says how.

    Example:
        >>> parse_index({"version": 3})
        Traceback (most recent call last):
        ValueError: expected version 1 or 2, which this lightning_mvp reads, but got 3
    """
    if not isinstance(facts, dict) or "version" not in facts:
        raise ValueError("damaged: it is no JSON object with a version")
    version = facts["version"]
    if version not in VERSIONS or type(version) is not int:
        known = " or ".join(map(str, VERSIONS))
        raise ValueError(f"expected version {known}, which this lightning_mvp reads, but got {str(version)[:80]}")
    missing = {"recipe", "groups", "theta0", *(("preprocessing",) if version > 1 else ())} - facts.keys()
    if missing:
        raise ValueError(f"damaged: it lacks {sorted(missing)}")
    recipe, groups, theta0 = facts["recipe"], facts["groups"], facts["theta0"]
    if not isinstance(recipe, (dict, type(None))):
        raise ValueError(f"damaged: its recipe is neither an object nor null, but {str(recipe)[:80]!r}")
    if not isinstance(groups, dict) or not all(type(size) is int and 0 < size < 2**31 for size in groups.values()):
        raise ValueError(f"damaged: its groups are no mapping to numbers of units, but {str(groups)[:80]!r}")
    if not isinstance(theta0, str) or len(theta0) != 64 or not set(theta0) <= set("0123456789abcdef"):
        raise ValueError(f"damaged: the fingerprint of θ⁰ is not 64 hexadecimal digits, but {str(theta0)[:80]!r}")
    preprocessing = facts["preprocessing"] if version > 1 else None
    if preprocessing is not None:
        try:
            preprocessing = require_preprocessing(preprocessing)
        except ValueError as error:
            raise ValueError(f"damaged: its preprocessing is not usable: {str(error).rstrip('.')}") from error
    return Index(recipe, groups, theta0, preprocessing, version)


def read_index(folder: Path, *, expected: bool = False) -> Index:
    """Read `zoo.json`.

    Args:
        folder: The zoo's folder.
        expected: Whether the file is known to be there, perhaps just written by another machine: then wait for it.

    Raises:
        FileNotFoundError: There is no `zoo.json`.
        UnseenFileError: There is one, but the file system does not show it.
        ValueError: It is damaged or of another version.
    """
    path = folder / INDEX
    try:
        return parse_index(read_listed(path, read_json, expected=expected))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}. Restore it or fill a new zoo.") from error


def read_theta0(folder: Path, wanted: str, *, expected: bool = False) -> dict[str, np.ndarray]:
    """Read θ⁰ and verify it against the `wanted` fingerprint; `expected` as in `read_index`.

    Raises:
        ValueError: The file is missing, damaged or of another θ⁰.
        UnseenFileError: There is one, but the file system does not show it.
    """
    path = folder / THETA0
    try:
        state = read_listed(path, _read_state, expected=expected)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).rstrip('.')}. Restore it or fill a new zoo.") from error
    found = fingerprint(state)
    if found != wanted:
        raise ValueError(
            f"{path} is not this zoo's θ⁰: expected fingerprint {wanted}, got {found}. Restore it or fill a new zoo."
        )
    return state


def create_index(folder: Path, index: Index, theta0: Mapping[str, np.ndarray]) -> Index:
    """Write both files unless they are there; returns the index that is there then, as other jobs may do the same.

    Raises:
        ValueError: A file is in the way, or θ⁰'s file is another one without a `zoo.json` beside it.
        OSError: The files could not be written.
    """
    if (folder / INDEX).exists():
        return read_index(folder, expected=True)
    try:
        # θ⁰ comes first: whoever sees zoo.json sees a whole zoo.
        write_whole(folder / THETA0, save({name: np.asarray(value, order="C") for name, value in theta0.items()}))
    except NotADirectoryError as error:
        raise ValueError(f"Expected {folder} to be a folder for a zoo, but a file is in the way.") from error
    except FileExistsError:
        _require_theta0(folder, index)
    with contextlib.suppress(FileExistsError):
        write_whole(folder / INDEX, index.text.encode())
    return read_index(folder, expected=True)


def require_same(folder: Path, own: Index, found: Index) -> None:
    """Refuse a zoo that is there, and is of another backbone, other groups or another θ⁰.

    Raises:
        ValueError: The message says which, and where only the weights differ, how to load the zoo's.
    """
    differing, file = own.differences(found), folder / THETA0
    if differing and (own.recipe, own.groups) == (found.recipe, found.groups):
        raise ValueError(
            f"The zoo at {folder} begins with other weights than this backbone, and all of its tasks begin with the "
            "same, θ⁰. Load them into the backbone before fit, by `from safetensors.torch import load_file; "
            f"backbone.load_state_dict(load_file({str(file)!r}), strict=False)`, or in a command by weights={file}. "
            "For a zoo of your weights, name another folder."
        )
    if differing:
        raise ValueError(
            f"The zoo at {folder} is of another backbone or θ⁰. " + "; ".join(differing) + ". Use another folder."
        )


def _require_theta0(folder: Path, index: Index) -> None:
    """Another job's θ⁰, or one that an interrupted creation left behind: then no `zoo.json` must claim it as ours."""
    try:
        read_theta0(folder, index.theta0, expected=True)
    except ValueError as error:
        if (folder / INDEX).exists():
            return  # a whole zoo, which the caller compares with his
        raise ValueError(
            f"{error} There is no {INDEX} beside it: if no other job is just creating this zoo, it was left by a job "
            "that was stopped, and may be removed."
        ) from error


def _read_state(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path, MOST_BYTES) as file:
        return {name: file.read(name) for name in file.specs}
