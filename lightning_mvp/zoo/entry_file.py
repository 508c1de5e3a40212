"""The file of one zoo entry, written whole or not at all, and read as if an enemy had written it. Needs no torch.

A file holds the tensors ``mask/<group>`` (packed bits), ``weight/<name>`` (kept entries only), ``importance/<group>``,
``head/<name>`` and ``prototype/features``, and in its metadata the facts as JSON with a SHA-256 over all of it. Anybody
can compute that sum: where it fits, the file is whole, but its content can still be hostile, and is checked as well.

An entry whose prototypes were made by another preprocessing than that of its facts says by which, and is of format 2.
All others are of format 1, which earlier versions read, too.

What is float32 may be stored as bfloat16, in half the bytes; it is read as float32, and the SHA-256 is over that.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lightning_mvp.files import NOT_YET_VISIBLE, write_whole
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.zoo.bfloat16 import from_bfloat16, to_bfloat16
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry, validate, validate_facts, validate_seen_by
from lightning_mvp.zoo.strict_json import JSON_LIMIT, parse_json
from lightning_mvp.zoo.tensor_file import TensorFile, TensorSpec, open_tensors, serialise

Storage = Literal["float32", "bfloat16"]

FORMAT = "lightning-mvp-entry-1"
# Versions that know only the first would compare its prototypes with other features than they were made of.
FORMAT_SEEN_BY = "lightning-mvp-entry-2"
SUFFIX = ".safetensors"

# The most bytes of head and prototypes, whose size θ⁰ does not limit. Twenty thousand classes of two thousand features
# take a third of it.
MOST_HEAD_BYTES = 1 << 30
PROTOTYPES = "prototype/features"
SEEN_BY = "prototypes_seen_by"
_PARTS = ("mask", "weight", "importance", "head", "prototype")
# Errors that are not the file's fault: the process has too many files open, or was interrupted.
_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


def write_entry(
    path: str | Path,
    entry: ZooEntry,
    *,
    overwrite: bool = False,
    parents: bool = True,
    storage: Storage = "float32",
) -> Path:
    """Validate `entry` and write it whole or not at all; without `overwrite` the first writer wins.

    Args:
        path: The file to write, named as the entry.
        entry: The entry to write.
        overwrite: Whether to replace a file that is there.
        parents: Whether to make missing folders on the way.
        storage: "bfloat16" rounds all that is float32 to the nearest bfloat16, which takes half the bytes; it is read
            as float32 again. Any other type is stored as it is.

    Raises:
        ValueError: The entry contradicts itself or holds a value that is not finite, or would not be as bfloat16;
            nothing is written.
        FileExistsError: There is such a file and `overwrite` is false.
        OSError: The file could not be written; the message says why and what to do.
    """
    if storage not in get_args(Storage):
        choices = ", ".join(map(repr, get_args(Storage)))
        raise ValueError(f"Expected argument `storage` to be one of {choices}, but got {storage!r}.")
    validate(entry)
    header = json.dumps(
        {
            "name": entry.name,
            "facts": entry.facts,
            "config": entry.config,
            "groups": {group: len(mask) for group, mask in entry.masks.items()},
            "info": _finite(entry.info),
            **({} if entry.prototypes_seen_by is None else {SEEN_BY: entry.prototypes_seen_by}),
        },
        allow_nan=False,
        separators=(",", ":"),
    )
    parts: dict[str, Mapping[str, np.ndarray]] = {
        "mask": {group: np.packbits(mask) for group, mask in entry.masks.items()},
        "weight": entry.weights,
        "importance": {group: np.asarray(value, np.float32) for group, value in entry.importance.items()},
        "head": entry.head,
        "prototype": {} if entry.prototypes is None else {"features": entry.prototypes},
    }
    tensors = {
        # np.ascontiguousarray would turn a scalar such as num_batches_tracked into a vector.
        f"{part}/{name}": np.array(value, value.dtype.newbyteorder("="), order="C")
        for part, values in parts.items()
        for name, value in values.items()
    }
    bits = _halved(entry.name, tensors) if storage == "bfloat16" else {}
    # The sum is over what is read, so that it says the same of a file however its values are stored.
    read = {**tensors, **{name: from_bfloat16(value) for name, value in bits.items()}}
    form = FORMAT if entry.prototypes_seen_by is None else FORMAT_SEEN_BY
    metadata = {"format": form, "entry": header, "sha256": _payload_sha256(read, header)}
    payload = serialise({**tensors, **bits}, metadata, bits.keys())
    _require_readable(entry.name, header, int.from_bytes(payload[:8], "little"))
    return write_whole(path, payload, overwrite=overwrite, parents=parents)


def read_entry(path: str | Path, most_bytes: int | None = None) -> ZooEntry:
    """Read and verify an entry: payload hash, names, types, shapes, finite values. It is never loaded in part.

    Args:
        path: The file to read.
        most_bytes: A larger file is refused before it is read; None: no limit.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedEntryError: Anything else is wrong; the message names the file and the reason.
    """
    path = Path(path)
    with naming(path), open_tensors(path, most_bytes) as file:
        header, text = _read_header(path, file)
        tensors = {name: file.read(name) for name in file.specs}
        if _payload_sha256(tensors, text) != file.metadata.get("sha256"):
            raise ValueError("its content does not match its SHA-256")
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
        entry = ZooEntry(
            name=header["name"],
            facts=header["facts"],
            config=header["config"],
            masks={group: _unpack(group, parts["mask"][group], size) for group, size in header["groups"].items()},
            weights=parts["weight"],
            importance={group: parts["importance"][group] for group in header["groups"] if parts["importance"]},
            head=parts["head"],
            prototypes=parts["prototype"].get("features"),
            info=header["info"],
            prototypes_seen_by=header.get(SEEN_BY),
        )
        validate(entry)
    return entry


def read_header(path: str | Path, prototypes: bool = False) -> dict[str, Any]:
    """Name, facts, config, groups, info and "sha256" of an entry, without its tensors: cheap, but that is not verified.

    An entry whose prototypes were made by another preprocessing than its facts' has a "prototypes_seen_by", too.

    Args:
        path: The file to read.
        prototypes: Whether to return also ``"has_head"`` and ``"prototypes"``, an array or None.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedEntryError: Something that shows without the tensors is wrong; the message names the file and the reason.
    """
    path = Path(path)
    with naming(path), open_tensors(path) as file:
        header = {**_read_header(path, file)[0], "sha256": file.metadata.get("sha256", "")}
        if not prototypes:
            return header
        rows = None
        if PROTOTYPES in file.specs:
            shape = file.specs[PROTOTYPES].shape
            if len(shape) != 2 or shape[0] != len(header["facts"]["classes"]) or math.prod(shape) * 4 > MOST_HEAD_BYTES:
                raise ValueError(f"expected prototypes of {len(header['facts']['classes'])} classes, but got {shape}")
            rows = file.read(PROTOTYPES).astype(np.float32)
            if not np.isfinite(rows).all():
                raise ValueError("its prototypes hold NaN or infinity")
        return {**header, "has_head": "head/weight" in file.specs, "prototypes": rows}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with an entry's file into a `DamagedEntryError` that names the file."""
    try:
        yield
    except DamagedEntryError:
        raise
    except ValueError as error:
        raise DamagedEntryError(
            f"{shown(path)}: cannot be used: {str(error).rstrip('.')}. Remove it and prune this task again."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"There is no zoo entry at {shown(path)}") from error
    except OSError as error:
        if error.errno in (*NOT_YET_VISIBLE, *_OF_THE_PROCESS):
            raise
        raise DamagedEntryError(
            f"{shown(path)}: cannot be read ({error.strerror}). Mend that, or remove it."
        ) from error


def shown(path: Path | str) -> str:
    """A path as it may be printed: a file's name can hold bytes that are no text, and codes that steer a terminal.

    Example:
        >>> shown(Path("a\\x1b[2Jb"))
        'a\\\\x1b[2Jb'
    """
    text = str(path)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _read_header(path: Path, file: TensorFile) -> tuple[dict[str, Any], str]:
    """The header and its text, checked against the file's name and the types and shapes of its tensors."""
    got = file.metadata.get("format")
    if got not in (FORMAT, FORMAT_SEEN_BY):
        raise ValueError(f"not a zoo entry (expected format {FORMAT!r}, got {got if got is None else got[:80]!r})")
    text = file.metadata.get("entry", "")
    header = parse_json(text)
    keys = ("name", "facts", "config", "groups", "info", *((SEEN_BY,) if got == FORMAT_SEEN_BY else ()))
    missing = sorted(set(keys) - header.keys()) if isinstance(header, dict) else list(keys)
    if missing:
        raise ValueError(f"its header lacks {missing}")
    name = path.name.removesuffix(SUFFIX)
    if header["name"] != name:
        raise DamagedEntryError(
            f"{shown(path)}: holds the entry {str(header['name'])[:200]!r}. Give the file that name, or remove it."
        )
    validate_facts(name, header["facts"], header["config"], header["info"])
    validate_seen_by(name, header.get(SEEN_BY))
    _check_tensors(header["groups"], file.specs)
    return {key: header[key] for key in keys}, text


def _check_tensors(groups: Any, specs: Mapping[str, TensorSpec]) -> None:
    """Masks and importance have the sizes of the groups, and every tensor a known name: nothing is allocated before."""
    if (
        not isinstance(groups, dict)
        or not groups
        or not all(type(size) is int and 0 < size < 2**31 for size in groups.values())
    ):
        raise ValueError(f"its groups are no mapping to numbers of units, but {str(groups)[:80]!r}")
    missing = [group for group in groups if f"mask/{group}" not in specs]
    if missing:
        raise ValueError(f"its parts do not match its header: there are no masks of the groups {missing[:5]}")
    for name, spec in specs.items():
        part, _, key = name.partition("/")
        if part == "mask" and key in groups:
            _require(name, spec, np.dtype(np.uint8), (math.ceil(groups[key] / 8),))
        elif part == "importance" and key in groups:
            _require(name, spec, np.dtype(np.float32), (groups[key],))
        elif not key or (part not in ("weight", "head") and name != PROTOTYPES):
            raise ValueError(f"its parts do not match its header: {name[:200]!r} is no tensor of these groups")
    scored = [group for group in groups if f"importance/{group}" in specs]
    if len(scored) not in (0, len(groups)):
        raise ValueError(f"its importance is of {len(scored)} of {len(groups)} groups")


def _require(name: str, spec: TensorSpec, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if spec.dtype != dtype or spec.shape != shape:
        raise ValueError(f"expected tensor {name!r} to be {dtype} of shape {shape}, but got {spec.dtype} {spec.shape}")


def _require_readable(name: str, header: str, length: int) -> None:
    """Refuse to write what this version would refuse to read."""
    try:
        if length > JSON_LIMIT:
            raise ValueError(f"it has {length:,} bytes")
        parse_json(header)
    except ValueError as error:
        raise ValueError(
            f"Expected facts, config and info of entry {name!r} to be plain JSON below {JSON_LIMIT:,} bytes, but "
            f"{error}."
        ) from error


def _unpack(group: str, packed: np.ndarray, size: int) -> np.ndarray:
    bits = np.unpackbits(packed).astype(bool)
    if bits[size:].any():
        raise ValueError(f"the mask of group {group!r} has bits beyond its {size} units")
    return bits[:size]


def _finite(value: Any) -> Any:
    """Undefined numbers become null: JSON knows no NaN, and one undefined metric must not cost the whole entry."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _halved(entry: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The bfloat16 bit patterns of those tensors that are float32."""
    bits = {}
    for name, value in tensors.items():
        if value.dtype == np.float32:
            try:
                bits[name] = to_bfloat16(value)
            except ValueError as error:
                raise ValueError(f"Tensor {name!r} of entry {entry!r}: {error} Store it as float32.") from error
    return bits


def _payload_sha256(tensors: Mapping[str, np.ndarray], header: str) -> str:
    return fingerprint({**tensors, "": np.frombuffer(header.encode(), np.uint8)})
