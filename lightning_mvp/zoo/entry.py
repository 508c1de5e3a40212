"""One entry of a zoo: the pruned model of one source task, and its file. Needs no torch.

A file holds the tensors ``mask/<group>`` (packed bits), ``weight/<name>`` (kept entries only), ``importance/<group>``,
``head/<name>`` and ``prototype/features``, and in its metadata the facts as JSON with a SHA-256 over all of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lightning_mvp.files import write_whole
from lightning_mvp.fingerprint import fingerprint

FORMAT = "lightning-mvp-entry-1"


class DamagedEntryError(ValueError):
    """A zoo file that cannot be trusted; the message names the file and the reason."""


@dataclass(frozen=True)
class ZooEntry:
    """What is kept of one pruned model.

    Args:
        name: ``entry_id(facts["name"], config)``, also the name of the file.
        facts: the task as `TaskFacts.to_dict()` gives it; `name` and `classes` are required.
        config: the pruning configuration (plain JSON); its hash is part of the name.
        masks: group → bool ``(units,)``, the units kept.
        weights: state_dict name → the kept entries of that tensor.
        importance: group → float32 ``(units,)``, the last finite score of each unit; may be empty.
        head: ``weight`` ``(classes, kept features)`` and perhaps ``bias`` ``(classes,)``, or empty.
        prototypes: ``(classes, dense features)`` class means of θ⁰'s features, or None.
        info: anything else worth knowing (accuracy, steps, seed, versions, seconds …; plain JSON, NaN is written null).
    """

    name: str
    facts: dict[str, Any]
    config: dict[str, Any]
    masks: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    importance: dict[str, np.ndarray] = field(default_factory=dict)
    head: dict[str, np.ndarray] = field(default_factory=dict)
    prototypes: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of the SHA-256 of `config` as JSON with sorted keys.

    Example:
        >>> config_hash({"rounds": 8, "pruning_ratio": 0.7}) == config_hash({"pruning_ratio": 0.7, "rounds": 8})
        True
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def entry_id(task_name: str, config: Mapping[str, Any]) -> str:
    """``<task>--<hash8 of the pruning config>``: the name of an entry in its zoo.

    Raises:
        ValueError: the task's name cannot be part of a file name.

    Example:
        >>> entry_id("source-003", {"pruning_ratio": 0.7})
        'source-003--ca436456'
    """
    if not task_name.isprintable() or not task_name.strip(".") or set("/\\") & set(task_name):
        raise ValueError(
            f"Expected a task name that is printable, not only dots, and without slashes, but got {task_name!r}. "
            "Rename the task: its zoo entry is a file of that name."
        )
    return f"{task_name}--{config_hash(config)}"


def write_entry(path: str | Path, entry: ZooEntry, *, overwrite: bool = False) -> Path:
    """Validate `entry` and write it whole or not at all; without `overwrite` the first writer wins.

    Raises:
        ValueError: the entry contradicts itself or holds a value that is not finite; nothing is written.
        FileExistsError: there is such a file and `overwrite` is false.
    """
    validate(entry)
    header = json.dumps(
        {
            "name": entry.name,
            "facts": entry.facts,
            "config": entry.config,
            "groups": {group: len(mask) for group, mask in entry.masks.items()},
            "info": _finite(entry.info),
        },
        allow_nan=False,
    )
    tensors = {f"mask/{group}": np.packbits(mask) for group, mask in entry.masks.items()}
    tensors |= {f"weight/{name}": _compact(value) for name, value in entry.weights.items()}
    tensors |= {f"importance/{group}": _compact(value, np.float32) for group, value in entry.importance.items()}
    tensors |= {f"head/{name}": _compact(value) for name, value in entry.head.items()}
    if entry.prototypes is not None:
        tensors["prototype/features"] = _compact(entry.prototypes)
    metadata = {"format": FORMAT, "entry": header, "sha256": _payload_sha256(tensors, header)}
    return write_whole(path, save(tensors, metadata), overwrite=overwrite)


def read_entry(path: str | Path) -> ZooEntry:
    """Read and verify an entry: payload hash, names, shapes, finite values. It is never loaded in part.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedEntryError: anything else is wrong; the message names the file and the reason.
    """
    path = Path(path)
    header, tensors = _open(path, with_tensors=True)
    parts: dict[str, dict[str, np.ndarray]] = {k: {} for k in ("mask", "weight", "importance", "head", "prototype")}
    try:
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
        entry = ZooEntry(
            name=header["name"],
            facts=header["facts"],
            config=header["config"],
            masks={
                group: np.unpackbits(parts["mask"].pop(group), count=size).astype(bool)
                for group, size in header["groups"].items()
            },
            weights=parts["weight"],
            importance={group: parts["importance"][group] for group in header["groups"] if parts["importance"]},
            head=parts["head"],
            prototypes=parts["prototype"].get("features"),
            info=header["info"],
        )
    except (KeyError, TypeError) as error:
        raise DamagedEntryError(
            f"{path}: its parts do not match its header ({error!r}). Prune this task again."
        ) from error
    if entry.name != path.stem:
        raise DamagedEntryError(f"{path}: holds the entry {entry.name!r}. Give the file that name again.")
    try:
        validate(entry)
    except ValueError as error:
        raise DamagedEntryError(f"{path}: {error}") from error
    return entry


def read_header(path: str | Path) -> dict[str, Any]:
    """Name, facts, config, groups and info of an entry, without its tensors: cheap, but the SHA-256 is not verified.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedEntryError: the header cannot be read or lacks one of these keys.
    """
    path = Path(path)
    header, _ = _open(path)
    missing = {"name", "facts", "config", "groups", "info"} - header.keys() if isinstance(header, dict) else {"all"}
    if missing:
        raise DamagedEntryError(f"{path}: its header lacks {sorted(missing)}. Remove it and prune this task again.")
    if header["name"] != path.stem:
        raise DamagedEntryError(f"{path}: holds the entry {header['name']!r}. Give the file that name again.")
    return header


def validate(entry: ZooEntry) -> None:
    """Raise ValueError, saying what was expected and what was found, unless `entry` agrees with itself."""
    missing = {"name", "classes"} - entry.facts.keys()
    if missing:
        raise ValueError(f"Expected the facts of entry {entry.name!r} to have {sorted(missing)}, but they are missing.")
    expected = entry_id(entry.facts["name"], entry.config)
    if entry.name != expected:
        raise ValueError(
            f"Expected the entry of this task and config to be named {expected!r}, but got {entry.name!r}."
        )
    if not entry.masks or not entry.weights:
        raise ValueError(f"Expected entry {entry.name!r} to have masks and weights, but one of them is empty.")
    for group, mask in entry.masks.items():
        if mask.dtype != bool or mask.ndim != 1 or not mask.any():
            raise ValueError(
                f"Expected the mask of group {group!r} to be bool of shape (units,) with at least one unit kept, "
                f"but got {mask.dtype} of shape {mask.shape} with {np.count_nonzero(mask)} kept."
            )
    if entry.importance and entry.importance.keys() != entry.masks.keys():
        differing = sorted(entry.importance.keys() ^ entry.masks.keys())
        raise ValueError(f"Expected importance and masks of the same groups, but they differ in {differing}.")
    for group, scores in entry.importance.items():
        _expect(f"importance of group {group!r}", scores, entry.masks[group].shape)
    for name, value in entry.weights.items():
        _expect(f"weight {name!r}", value, value.shape)
    classes = len(entry.facts["classes"])
    if entry.head:
        if not {"weight"} <= entry.head.keys() <= {"weight", "bias"}:
            raise ValueError(f"Expected the head to have 'weight' and perhaps 'bias', but got {sorted(entry.head)}.")
        _expect("head's weight", entry.head["weight"], (classes, *entry.head["weight"].shape[1:2]), ndim=2)
        if "bias" in entry.head:
            _expect("head's bias", entry.head["bias"], (classes,))
    if entry.prototypes is not None:
        _expect("prototypes", entry.prototypes, (classes, *entry.prototypes.shape[1:2]), ndim=2)


def _expect(what: str, value: np.ndarray, shape: tuple[int, ...], ndim: int | None = None) -> None:
    if value.shape != shape or (ndim is not None and value.ndim != ndim):
        raise ValueError(f"Expected the {what} to have shape {shape}, but got {value.shape}.")
    if not np.isfinite(value).all():
        raise ValueError(f"Expected the {what} to be finite, but it holds NaN or infinity.")


def _finite(value: Any) -> Any:
    """JSON knows no NaN; one undefined metric must not cost the whole entry."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compact(value: np.ndarray, dtype: Any = None) -> np.ndarray:
    # np.ascontiguousarray would turn a scalar such as num_batches_tracked into a vector.
    return np.array(value, dtype=dtype, order="C")


def _payload_sha256(tensors: Mapping[str, np.ndarray], header: str) -> str:
    return fingerprint({**tensors, "": np.frombuffer(header.encode(), np.uint8)})


def _open(path: Path, *, with_tensors: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and, on request, the tensors, whose hash is then checked together with the header's."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no zoo entry at {path}.")
    tensors: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if with_tensors:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata.get("format") != FORMAT:
            raise DamagedEntryError(
                f"{path}: not a zoo entry (expected format {FORMAT!r}, got {metadata.get('format')!r})."
            )
        header = json.loads(metadata["entry"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DamagedEntryError(f"{path}: cannot be read ({error}). Remove it and prune this task again.") from error
    if with_tensors and _payload_sha256(tensors, metadata["entry"]) != metadata.get("sha256"):
        raise DamagedEntryError(f"{path}: its content does not match its SHA-256. Remove it and prune this task again.")
    return header, tensors
