"""Safetensors files that anybody may have written: all of the header is checked before memory is taken for a tensor.

Read, not memory-mapped: a mapped file that somebody truncates kills the process that looks at it.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from lightning_mvp.zoo.bfloat16 import from_bfloat16
from lightning_mvp.zoo.strict_json import parse_json

# Thousands of tensors and tens of thousands of class names fit in a tenth of it.
HEADER_LIMIT = 8 << 20
AXES = 16

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
# Stored as bit patterns, read as float32: twice the bytes of the file.
BFLOAT16 = "BF16"
_STORED = {**DTYPES, BFLOAT16: np.dtype(np.uint16)}
_READ = {**DTYPES, BFLOAT16: np.dtype(np.float32)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Type, shape and place (bytes after the header) of one tensor.

    Args:
        dtype: as it is read.
        shape: of the tensor.
        start: of its bytes.
        end: of its bytes.
        stored: its type in the file, by its name there.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    stored: str

    @property
    def nbytes(self) -> int:
        """Of the array that is read; a bfloat16 tensor takes half of that in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file with a sound header.

    Args:
        file: open for reading.
        begin: where the tensors begin.
        metadata: name → text.
        specs: name → what is known of the tensor.
    """

    file: BufferedReader
    begin: int
    metadata: dict[str, str]
    specs: dict[str, TensorSpec]

    def read(self, name: str) -> np.ndarray:
        """One tensor, as an array of its own; bfloat16 as float32.

        Raises:
            ValueError: the file ends early, or a bool is neither 0 nor 1.
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
def open_regular(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, open for reading, and its size: anything else (a pipe, a device) could be waited for forever.

    Raises:
        ValueError: it is no regular file.
        OSError: it can't be opened.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        yield file, status.st_size


@contextmanager
def open_tensors(path: Path, most_bytes: int | None = None) -> Iterator[TensorFile]:
    """Open a safetensors file and check all that its header says against the file's size.

    Args:
        path: of the file.
        most_bytes: a larger file is refused, and one whose tensors have more bytes once they are read.

    Raises:
        ValueError: anything but a sound safetensors file; says what, and the caller says in which file.
        OSError: it can't be opened.

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
        if size < 10 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            raise ValueError(
                f"its header claims {length:,} bytes, but the file has {size:,} and a header at most {HEADER_LIMIT:,}"
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
    if not _are_sizes(shape) or len(shape) > AXES or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(
            f"tensor {name[:200]!r} has shape {str(shape)[:80]} and data_offsets {str(offsets)[:80]}, but expected are "
            f"lists of at most {AXES} and of 2 sizes"
        )
    start, end = offsets
    expected = math.prod(shape) * _STORED[dtype].itemsize
    if end - start != expected:
        raise ValueError(f"tensor {name[:200]!r} has {end - start} bytes, but {dtype} of shape {shape} has {expected}")
    return TensorSpec(_READ[dtype], tuple(shape), start, end, dtype)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**48 for size in value)


def serialise(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], bfloat16: Collection[str] = ()) -> bytes:
    """A safetensors file, in the order in which safetensors itself writes: wide types first, then by name.

    Its own writer takes bfloat16 from torch only, and puts metadata in another order each time.

    Args:
        tensors: name → array of a type in `DTYPES`.
        metadata: name → text.
        bfloat16: names of those tensors that are uint16 bit patterns of bfloat16.

    Raises:
        ValueError: a tensor is of a type that can't be stored.

    Example:
        >>> from safetensors.numpy import load
        >>> load(serialise({"a": np.arange(3)}, {"made": "by hand"}))
        {'a': array([0, 1, 2])}
    """
    wrong = {name: str(value.dtype) for name, value in tensors.items() if value.dtype not in _NAMES}
    wrong |= {name: str(tensors[name].dtype) for name in bfloat16 if tensors[name].dtype != np.uint16}
    if wrong:
        raise ValueError(
            f"Expected tensors of {', '.join(map(str, DTYPES.values()))}, and bfloat16 as uint16, but got {wrong}."
        )
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[bytes | memoryview] = []
    reached = 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        flat = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        dtype = BFLOAT16 if name in bfloat16 else _NAMES[value.dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [reached, reached + flat.size],
        }
        parts.append(flat.data)
        reached += flat.size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that a reader that maps the file finds every tensor aligned
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
