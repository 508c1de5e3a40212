"""A zoo: a folder with the pruned models of many source tasks, all from one backbone. Needs no torch to read or write.

```
<zoo>/zoo.json                 format version, backbone recipe, group sizes, fingerprints
<zoo>/theta0.safetensors       the pre-trained weights, once
<zoo>/tasks/<id>.safetensors   one file per entry
```
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lightning_mvp.files import write_whole
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry, read_entry, read_header, validate, write_entry

if TYPE_CHECKING:
    from lightning_mvp.voting.similarity import Neighbour

VERSION = 1


class ModelZoo:
    """The pruned models in a folder: a read-only mapping from entry names (sorted) to entries, with `add` and `remove`.

    Args:
        path: the folder of an existing zoo; `ModelZoo.create` makes one.

    Raises:
        FileNotFoundError: the folder is missing or holds no zoo.
        ValueError: its `zoo.json` cannot be read or is of another version.

    Example:
        >>> import tempfile
        >>> theta0 = {"conv.weight": np.ones((4, 3, 1, 1), np.float32)}
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), recipe=None, theta0=theta0, group_sizes={"conv": 4})
        >>> len(zoo), zoo.group_sizes
        (0, {'conv': 4})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = self.path / "zoo.json"
        if not index.is_file():
            state = "it holds no zoo.json" if self.path.is_dir() else "there is no such folder"
            raise FileNotFoundError(f"Expected a zoo at {self.path}, but {state}. Fill one with `mvp-prune`.")
        try:
            facts = json.loads(index.read_text())
            version = facts["version"]
            if version == VERSION:
                self.recipe: dict[str, Any] | None = facts["recipe"]
                self.group_sizes: dict[str, int] = facts["groups"]
                self.theta0_fingerprint: str = facts["theta0"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is damaged ({error!r}). Restore it or fill a new zoo.") from error
        if version != VERSION:
            raise ValueError(f"Expected {index} to be of version {VERSION}, but got {version!r}.")

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe: Mapping[str, Any] | None,
        theta0: Mapping[str, np.ndarray],
        group_sizes: Mapping[str, int],
    ) -> ModelZoo:
        """Make the zoo of this backbone, or open it if it is there already: many jobs may call this at once.

        Args:
            path: the folder; parents are made.
            recipe: the backbone's recipe (plain JSON), or None for a backbone only you can build.
            theta0: the dense pre-trained state.
            group_sizes: units per group, in the order of the groups.

        Raises:
            ValueError: there is a zoo of another backbone, of other groups or of another θ⁰; says which.
        """
        path = Path(path)
        facts = {"version": VERSION, "recipe": recipe, "groups": dict(group_sizes), "theta0": fingerprint(theta0)}
        payload = json.dumps(facts, indent=2) + "\n"
        try:
            if not (path / "zoo.json").exists():
                # θ⁰ comes first: whoever sees zoo.json sees a whole zoo.
                _write_first(path / "theta0.safetensors", save({k: np.array(v, order="C") for k, v in theta0.items()}))
                _write_first(path / "zoo.json", payload.encode())
        except NotADirectoryError as error:
            raise ValueError(f"Expected {path} to be a folder for a zoo, but a file is in the way.") from error
        zoo = cls(path)
        found = {"version": VERSION, "recipe": zoo.recipe, "groups": zoo.group_sizes, "theta0": zoo.theta0_fingerprint}
        expected = json.loads(payload)
        differing = [
            f"{label}: expected {expected[key]}, got {found[key]}"
            for key, label in (("recipe", "backbone recipe"), ("groups", "groups"), ("theta0", "fingerprint of θ⁰"))
            if expected[key] != found[key]
        ]
        if differing:
            raise ValueError(
                f"The zoo at {path} is of another backbone or θ⁰. " + "; ".join(differing) + ". Use another folder."
            )
        zoo.theta0()  # an interrupted creation may have left another θ⁰ behind
        return zoo

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, groups and θ⁰: what all entries of this zoo have in common."""
        facts = [self.recipe, self.group_sizes, self.theta0_fingerprint]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries, sorted; damaged ones included."""
        return tuple(sorted(path.stem for path in (self.path / "tasks").glob("*.safetensors")))

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
        return isinstance(name, str) and self._file(name).is_file()

    def __repr__(self) -> str:
        return f"ModelZoo({str(self.path)!r}, entries={len(self)}, configs={list(self.configs)})"

    def __getitem__(self, name: str) -> ZooEntry:
        """Read and verify one entry.

        Raises:
            KeyError: no entry of that name; similar names are told.
            DamagedEntryError: the file is damaged or belongs to another zoo.
        """
        self._require(name)
        entry = read_entry(self._file(name))
        self._require_ours(name, entry.info)
        try:
            self._check(entry)
        except ValueError as error:
            raise DamagedEntryError(f"{self._file(name)}: {error}") from error
        return entry

    def header(self, name: str) -> dict[str, Any]:
        """What an entry says about itself, read without its tensors: for listings, where all of it is not needed.

        Returns:
            ``{"name", "facts", "config", "groups" (group → units), "info"}``. Its SHA-256 is not verified: that takes
            the tensors, which ``zoo[name]`` reads.

        Raises:
            KeyError: no entry of that name; similar names are told.
            DamagedEntryError: the header is damaged or belongs to another zoo.
        """
        self._require(name)
        header = read_header(self._file(name))
        self._require_ours(name, header["info"])
        return header

    def entries(self, config: str | None = None) -> Iterator[ZooEntry]:
        """The sound entries (of one config's hash, or all) in the order of their names; damaged ones warn by name."""
        if config is not None and config not in self.configs:
            raise ValueError(f"Expected `config` to be one of {list(self.configs)}, but got {config!r}.")
        for name in self.names if config is None else self.configs[config]:
            try:
                yield self[name]
            except DamagedEntryError as error:
                warnings.warn(f"Skipping a damaged zoo entry: {error}", stacklevel=2)

    def add(self, entry: ZooEntry, overwrite: bool = False) -> Path:
        """Validate `entry` against this zoo and write it whole or not at all.

        Raises:
            ValueError: masks, weights or values do not fit this zoo's backbone; nothing is written.
            FileExistsError: the zoo has such an entry and `overwrite` is false.
        """
        validate(entry)
        self._check(entry)
        stamped = replace(entry, info={**entry.info, "zoo": self.fingerprint})
        try:
            return write_entry(self._file(entry.name), stamped, overwrite=overwrite)
        except FileExistsError as error:
            raise FileExistsError(
                f"The zoo at {self.path} has an entry {entry.name!r} already. Pass `overwrite=True` to replace it."
            ) from error

    def remove(self, name: str) -> None:
        """Delete one entry, damaged or not."""
        if name not in self:
            raise KeyError(f"No entry {name!r} in the zoo at {self.path}.")
        self._file(name).unlink()

    def verify(self) -> dict[str, str | None]:
        """Read every entry: name → what is wrong with it, or None."""
        problems: dict[str, str | None] = {}
        for name in self.names:
            try:
                self[name]
                problems[name] = None
            except DamagedEntryError as error:
                problems[name] = str(error)
        return problems

    def theta0(self) -> dict[str, np.ndarray]:
        """The pre-trained weights all entries come from, read once and verified against their fingerprint.

        Raises:
            ValueError: the file is damaged or of another θ⁰.
        """
        return dict(self._theta0)

    def nearest(self, images: Any, labels: Any, **options: Any) -> list[Neighbour]:
        """The entries most similar to a target task: `lightning_mvp.voting.rank_neighbours` on this zoo."""
        from lightning_mvp.voting.similarity import rank_neighbours  # reading a zoo must not import torch

        return rank_neighbours(self, images, labels, **options)

    @cached_property
    def _theta0(self) -> dict[str, np.ndarray]:
        path = self.path / "theta0.safetensors"
        try:
            state = load_file(path)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Restore it or fill a new zoo.") from error
        found = fingerprint(state)
        if found != self.theta0_fingerprint:
            raise ValueError(
                f"{path} is not this zoo's θ⁰: expected fingerprint {self.theta0_fingerprint}, got {found}. "
                "Restore it or fill a new zoo."
            )
        return state

    def _require(self, name: str) -> None:
        if name not in self:
            close = difflib.get_close_matches(name, self.names, n=3) or list(self.names[:3])
            raise KeyError(f"No entry {name!r} in the zoo at {self.path} with {len(self)} entries, such as {close}.")

    def _require_ours(self, name: str, info: dict[str, Any]) -> None:
        if info.get("zoo") != self.fingerprint:
            raise DamagedEntryError(f"{self._file(name)}: belongs to another zoo (other backbone or θ⁰). Remove it.")

    def _file(self, name: str) -> Path:
        return self.path / "tasks" / f"{name}.safetensors"

    def _check(self, entry: ZooEntry) -> None:
        """Does `entry` fit this zoo's groups and θ⁰?"""
        sizes = {group: len(mask) for group, mask in entry.masks.items()}
        if sizes != self.group_sizes:
            differing = [g for g in {**self.group_sizes, **sizes} if self.group_sizes.get(g) != sizes.get(g)]
            raise ValueError(
                "Expected masks of this zoo's groups, but they differ: "
                + ", ".join(f"{g} expected {self.group_sizes.get(g)} units, got {sizes.get(g)}" for g in differing[:5])
            )
        dense = self._theta0
        if entry.weights.keys() != dense.keys():
            differing = sorted(entry.weights.keys() ^ dense.keys())
            raise ValueError(f"Expected weights of the same names as θ⁰'s, but they differ in {differing[:5]}.")
        for name, value in entry.weights.items():
            shape = dense[name].shape
            if value.ndim != len(shape) or any(kept > full for kept, full in zip(value.shape, shape, strict=True)):
                raise ValueError(f"Expected weight {name!r} to be cut from shape {shape}, but got {value.shape}.")


def _write_first(path: Path, payload: bytes) -> None:
    """Write unless another job was first; what is there is compared afterwards."""
    try:
        write_whole(path, payload)
    except FileExistsError:
        if not path.is_file():
            raise
