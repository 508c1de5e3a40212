"""Safetensors files that anybody may have written: all of the header is checked before memory is taken for a tensor.

Reading and writing are our own for these reasons, tried with safetensors 0.8 on the hostile files of the tests:
`safe_open` maps the file (before version 0.8 always), and a mapped file that is truncated or replaced on a network file
system kills the process that reads it; `deserialize` needs all of the file in memory twice, also where only the header
is wanted. Both take a header that has a tensor's name twice, and NumPy arrays can't be bfloat16. `serialize` writes the
metadata in another order each time, so that equal entries would be different files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from lightning_mvp.files import open_regular
from lightning_mvp.zoo.bfloat16 import from_bfloat16
from lightning_mvp.zoo.strict_json import JSON_LIMIT, parse_json

MOST_AXES = 16

_KINDS = {"BOOL": "?", "F16": "f2", "F32": "f4", "F64": "f8"}
_KINDS |= {f"{kind.upper()}{8 * size}": f"{kind}{size}" for size in (1, 2, 4, 8) for kind in "ui"}
DTYPES = {name: np.dtype(kind) for name, kind in _KINDS.items()}
# NumPy has no bfloat16: its bit patterns are stored, and read as float32, in twice the bytes of the file.
BFLOAT16 = "BF16"
_STORED = {**DTYPES, BFLOAT16: np.dtype(np.uint16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Type, shape and place of one tensor, as the header says them.

    Args:
        stored: The name of its type in the file.
        shape: The sizes of its axes.
        start: Where its bytes begin, counted from the end of the header.
        end: Where its bytes end, counted likewise.
    """

    stored: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> np.dtype:
        """The type of the array that is read."""
        return np.dtype(np.float32) if self.stored == BFLOAT16 else DTYPES[self.stored]

    @property
    def nbytes(self) -> int:
        """Bytes in memory. A bfloat16 tensor is read as float32, so that its bytes in the file are half as many."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file whose header has been checked.

    Args:
        file: The file, open for reading.
        begin: Where the tensors begin.
        metadata: The header's texts by name.
        specs: What the header says of each tensor, by name.
    """

    file: BufferedReader
    begin: int
    metadata: dict[str, str]
    specs: dict[str, TensorSpec]

    def read(self, name: str) -> np.ndarray:
        """One tensor, as an array of its own; bfloat16 as float32.

        Raises:
            ValueError: The file ends early, or a bool is neither 0 nor 1.
        """
        spec = self.specs[name]
        dtype = _STORED[spec.stored]
        array = np.empty(spec.shape, dtype.newbyteorder("<"))
        raw = array.reshape(-1).view(np.uint8)
        self.file.seek(self.begin + spec.start)
        if self.file.readinto(raw.data) != raw.size:
            raise ValueError(f"it ends inside of tensor {name!r}")
        if spec.dtype == bool and (raw > 1).any():
            raise ValueError(f"tensor {name!r} is of bools, but some are neither 0 nor 1")
        array = array.astype(dtype, copy=False)
        return from_bfloat16(array) if spec.stored == BFLOAT16 else array


@contextmanager
def open_tensors(path: Path, most_bytes: int | None = None) -> Iterator[TensorFile]:
    """Open a safetensors file and check all that its header says against the file's size.

    Args:
        path: The file to open.
        most_bytes: A larger file is refused, and one whose tensors have more bytes once they are read; None: no limit.

    Raises:
        ValueError: The file is no valid safetensors file; the message says why, and the caller says which file it is.
        OSError: It can't be opened.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"a": np.arange(3)}, Path(folder, "a.safetensors"))
        ...     with open_tensors(Path(folder, "a.safetensors")) as tensors:
        ...         tensors.read("a")
        array([0, 1, 2])
    """
    with open_regular(path) as (file, size):
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"it has {size:,} bytes, but expected are at most {most_bytes:,}")
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(size - 8, JSON_LIMIT):
            raise ValueError(
                f"its header claims {length:,} bytes, but the file has {size:,} and a header at most {JSON_LIMIT:,}"
            )
        metadata, specs = _parse_header(file.read(length), size - 8 - length)
        read = 8 + length + sum(spec.nbytes for spec in specs.values())
        if most_bytes is not None and read > most_bytes:
            raise ValueError(f"it has {read:,} bytes once it is read, but expected are at most {most_bytes:,}")
        yield TensorFile(file, 8 + length, metadata, specs)


def _parse_header(header: bytes, payload: int) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    value = parse_json(header)
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not texts")
    specs = {name: _parse_spec(name, spec) for name, spec in value.items()}
    reached = 0
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].start, item[1].end)):
        if spec.start != reached:
            raise ValueError(f"tensor {name!r} begins at byte {spec.start}, but the one before it ends at {reached}")
        reached = spec.end
    if reached != payload:
        raise ValueError(f"its tensors end at byte {reached:,}, but there are {payload:,}")
    return metadata, specs


def _parse_spec(name: str, spec: object) -> TensorSpec:
    if not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:200]!r} does not have dtype, shape and data_offsets, and these only")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise ValueError(f"tensor {name[:200]!r} is of type {str(dtype)[:40]!r}, but known are {', '.join(_STORED)}")
    if not _are_sizes(shape) or len(shape) > MOST_AXES or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(
            f"tensor {name[:200]!r} has shape {str(shape)[:80]} and data_offsets {str(offsets)[:80]}, but expected are "
            f"lists of at most {MOST_AXES} and of 2 sizes"
        )
    start, end = offsets
    expected = math.prod(shape) * _STORED[dtype].itemsize
    if end - start != expected:
        raise ValueError(f"tensor {name[:200]!r} has {end - start} bytes, but {dtype} of shape {shape} has {expected}")
    return TensorSpec(dtype, tuple(shape), start, end)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**48 for size in value)


def serialise(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], bfloat16: Collection[str] = ()) -> bytes:
    """The bytes of a safetensors file, in the order in which safetensors itself writes: wide types first, then by name.

    Args:
        tensors: Arrays by name, each of a type in `DTYPES`.
        metadata: Texts by name, written in this order.
        bfloat16: Names of those tensors that are uint16 bit patterns of bfloat16.

    Raises:
        ValueError: A tensor is of a type that can't be stored.

    Example:
        >>> from safetensors.numpy import load
        >>> load(serialise({"a": np.arange(3)}, {"made": "by hand"}))
        {'a': array([0, 1, 2])}
    """
    wrong = {name: str(value.dtype) for name, value in tensors.items() if value.dtype not in _NAMES}
    if wrong:
        raise ValueError(f"Expected tensors of {', '.join(map(str, _NAMES))}, but got {wrong}.")
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        parts.append(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        start, end = end, end + value.nbytes
        stored = BFLOAT16 if name in bfloat16 else _NAMES[value.dtype]
        header[name] = {"dtype": stored, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # A reader that maps the file then finds every tensor aligned.
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
