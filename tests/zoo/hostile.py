"""Zoo files as damage and enemies make them: mutated bytes, and contradictions under a right SHA-256."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors.numpy import load

from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.entry_file import _payload_sha256

HUGE = 2**40
DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "uint8": "U8", "int64": "I64", "bool": "BOOL"}
LENGTHS = (0, 1, HUGE, 2**63, 2**64 - 1)


class Parts:
    """A safetensors file taken apart, to be changed and put together again without any check."""

    def __init__(self, whole: bytes) -> None:
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        # safetensors writes both in any order: sorted, the same seed damages the same bytes.
        self.metadata: dict[str, str] = dict(sorted(header.pop("__metadata__", {}).items()))
        self.entry: Any = json.loads(self.metadata["entry"]) if "entry" in self.metadata else None
        self.entry_text: str | None = None
        self.tensors: dict[str, np.ndarray] = dict(sorted(load(whole).items()))
        self.specs: dict[str, Any] = {}  # what the header says instead of the truth
        self.extra = b""

    def build(self) -> bytes:
        """All of it, with the SHA-256 that fits."""
        header, payload = {}, b""
        for name, tensor in self.tensors.items():
            begin = len(payload)
            payload += tensor.tobytes()
            header[name] = {
                "dtype": DTYPES[str(tensor.dtype)],
                "shape": list(tensor.shape),
                "data_offsets": [begin, len(payload)],
            }
        for name, spec in self.specs.items():
            header[name] = {**header[name], **spec} if isinstance(spec, dict) and name in header else spec
        if self.entry is not None:
            text = json.dumps(self.entry) if self.entry_text is None else self.entry_text
            self.metadata |= {"entry": text, "sha256": _payload_sha256(self.tensors, text)}
        return with_header(json.dumps({"__metadata__": self.metadata, **header}), payload + self.extra)


def with_header(header: str, payload: bytes) -> bytes:
    raw = header.encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def damaged(whole: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One random kind of damage, as disks, copies and networks do it."""
    at, other = (int(x) for x in rng.integers(0, len(whole), 2))
    length = int(rng.integers(1, 64))
    kinds: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: whole[:at],
        "extended": lambda: whole + rng.bytes(length),
        "flipped": lambda: _flipped(whole, rng),
        "swapped": lambda: _swapped(whole, at, other, length),
        "zeroed": lambda: whole[:at] + bytes(len(whole[at : at + length])) + whole[at + length :],
        "left out": lambda: whole[:at] + whole[at + length :],
        "twice": lambda: whole[: at + length] + whole[at:],
        "random": lambda: whole[:at] + rng.bytes(len(whole) - at),
        "long": lambda: struct.pack("<Q", (*LENGTHS, len(whole), at)[rng.integers(7)]) + whole[8:],
        "digit": lambda: _digit(whole, rng),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, kinds[kind]()


def _flipped(whole: bytes, rng: np.random.Generator) -> bytes:
    raw = bytearray(whole)
    for position in rng.integers(0, len(raw), int(rng.integers(1, 9))):
        raw[position] ^= 1 << int(rng.integers(8))
    return bytes(raw)


def _swapped(whole: bytes, at: int, other: int, length: int) -> bytes:
    first, second = sorted((at, other))
    length = min(length, second - first, len(whole) - second)
    a, b = whole[first : first + length], whole[second : second + length]
    return whole[:first] + b + whole[first + length : second] + a + whole[second + length :]


def _digit(whole: bytes, rng: np.random.Generator) -> bytes:
    """Another digit in the header: shapes, offsets and numbers of units are read before the sum can tell."""
    end = min(len(whole), 8 + int.from_bytes(whole[:8], "little"))
    places = [i for i in range(8, end) if whole[i : i + 1].isdigit()]
    if not places:
        return whole
    at = int(rng.choice(places))
    return whole[:at] + str(rng.integers(10)).encode() * int(rng.choice([1, 1, 9])) + whole[at + 1 :]


def contradictions(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Entries under a right SHA-256, each of which a reader must refuse; and how it is called."""

    def changed(change: Callable[[Parts], object]) -> bytes:
        parts = Parts(whole)
        change(parts)
        return parts.build()

    def entry(label: str, **values: Any) -> tuple[str, bytes]:
        return f"{label}", changed(lambda parts: parts.entry.update(values))

    def facts(**values: Any) -> tuple[str, bytes]:
        return f"facts {values}"[:60], changed(lambda parts: parts.entry["facts"].update(values))

    original = Parts(whole)
    config, groups = original.entry["config"], original.entry["groups"]

    # Types and shapes of each tensor, truly and in words.
    for name, tensor in original.tensors.items():
        for kind in ("float64", "float16", "uint8", "int64", "bool"):
            if kind != str(tensor.dtype) and not (name.startswith(("head", "prototype")) and kind.startswith("float")):
                yield f"{name} is {kind}", changed(_set(name, tensor.astype(kind)))
        for spec in (
            {"dtype": "BF16"},
            {"dtype": "F8_E4M3"},
            {"dtype": None},
            {"dtype": ["F32"]},
            {"shape": [HUGE]},
            {"shape": [HUGE, HUGE, HUGE]},
            {"shape": [-1]},
            {"shape": [True]},
            {"shape": [1.0]},
            {"shape": [1] * 100},
            {"shape": None},
            {"shape": {"0": 1}},
            {"data_offsets": [0, HUGE]},
            {"data_offsets": [HUGE, HUGE + tensor.nbytes]},
            {"data_offsets": [8, 0]},
            {"data_offsets": [0]},
            {"data_offsets": "all"},
            {"more": 1},
        ):
            yield f"{name} claims {spec}", changed(lambda parts, name=name, spec=spec: parts.specs.update({name: spec}))
        huge = {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, HUGE]}
        yield f"{name} claims a terabyte", changed(lambda parts, name=name, huge=huge: parts.specs.update({name: huge}))
        if name not in ("head/bias", "prototype/features"):  # which an entry may lack
            yield f"{name} is missing", changed(lambda parts, name=name: parts.tensors.pop(name))
        yield f"{name} has an axis more", changed(_set(name, tensor[..., None]))
        yield f"{name} is empty", changed(_set(name, tensor.reshape(-1)[:0]))
        if name.startswith(("mask", "importance")):
            yield f"{name} is longer", changed(_set(name, np.concatenate([tensor, tensor])))
            yield f"{name} is shorter", changed(_set(name, tensor[:-1]))
        for value in (np.nan, np.inf, -np.inf):
            if tensor.dtype.kind == "f":
                poisoned = tensor.copy()
                poisoned.reshape(-1)[-1] = value
                yield f"{name} holds {value}", changed(_set(name, poisoned))
    for group, size in groups.items():
        packed = original.tensors[f"mask/{group}"]
        yield f"{group} keeps nothing", changed(_set(f"mask/{group}", np.zeros_like(packed)))
        if size % 8:
            beyond = packed.copy()
            beyond[-1] |= 1
            yield f"{group} keeps what is not there", changed(_set(f"mask/{group}", beyond))
        for other in (0, -1, size + 1, size + 8, HUGE, 2**31, 2**70, True, float(size), str(size), None, [size]):
            yield entry(f"{group} is of {other} units", groups={**groups, group: other})
    yield "masks of two sizes change places", changed(_exchange("mask/stem", "mask/block"))

    # Names that lead elsewhere, exist twice, or are no names.
    for name in ("../../outside", "/tmp/outside", "a/b", "..", "", "\0", "\x1b[2J", "n" * 300, 7, None, [], {}):
        yield facts(name=name)
        yield entry(f"is called {name!r}"[:60], name=name)
        if isinstance(name, str):
            named = {**original.entry["facts"], "name": name}
            yield entry(f"is of the task {name!r}"[:60], facts=named, name=f"{name}--{entry_id('x', config)[3:]}")
    for part in ("../outside", "mask/", "weight/", "mask/other", "importance/other", "head/other", "prototype/x", "x"):
        yield f"has a tensor {part!r}", changed(_set(part, np.zeros(3, np.float32)))
    for variable in ("weight/stem.weight", "mask/stem", "__metadata__"):
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        text = json.dumps(header)
        twice = text[:-1] + f", {json.dumps(variable)}: {json.dumps(header[variable])}" + "}"
        yield f"{variable} twice", with_header(twice, whole[8 + int.from_bytes(whole[:8], "little") :])
    text = json.dumps(original.entry)
    yield "a group twice", changed(_say(text.replace('"groups": {', '"groups": {"stem": 6, ')))
    yield "facts twice", changed(_say(text[:-1] + ', "facts": {}}'))

    # JSON that is deep, large, or of other types.
    for depth in (100, 5_000, 100_000):
        deep = "[" * depth + "]" * depth
        yield f"{depth} deep info", changed(_say(text.replace('"info": {', f'"info": {{"deep": {deep}, ')))
        yield f"{depth} deep header", with_header(deep, b"")
        objects = '{"a":' * depth + "1" + "}" * depth
        yield f"{depth} deep objects", with_header(objects, b"")
    yield "many lists", with_header("[" + "[]," * 1_000_000 + "[]]", b"")
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 30, "9" * 5_000, "-" + "9" * 20):
        yield f"info has {number[:20]}", changed(_say(text.replace('"info": {', f'"info": {{"number": {number}, ')))
    for surrogate in ("\\ud800", "\\uDC00x"):
        yield f"a class is {surrogate}", changed(_say(text.replace('["a", "b"]', f'["a", "{surrogate}"]')))
    for value in (None, [], {}, "", 1, True, [{}]):
        for key in ("name", "facts", "config", "groups", "info"):
            if not (key == "info" and value == {}):  # then it is another zoo's: see test_hostile
                yield entry(f"{key} is {value}", **{key: value})
        for key in ("name", "classes"):
            yield facts(**{key: value})
    for key in ("name", "facts", "config", "groups", "info"):
        yield f"no {key}", changed(lambda parts, key=key: parts.entry.pop(key))
    for classes in (["a", "a"], ["a", ""], ["a", None], ["a", 1], ["a"], ["a", "b", "c"], "ab", {"a": 1, "b": 2}):
        yield facts(classes=classes)
    for size in (0, -1, 10**9, 8.0, "8", True, None, [8]):
        yield facts(input_size=size)
    for crop in (0, -1.0, 1e-9, "1", None):
        yield facts(crop=crop)
    yield entry("config is another", config={**config, "rounds": 99})
    for body in ("", "[]", "null", "{", '"text"', "{}" * 2, "\x00", text[:-1]):
        yield f"entry is {body[:20]!r}", changed(_say(body))
    for header in ("", "[]", "null", "{}", "7", '{"__metadata__": []}', '{"__metadata__": {"format": 1}}', '{"a": {}}'):
        yield f"header is {header!r}", with_header(header, b"")
    for value in ("lightning-mvp-entry-2", ""):
        yield f"format {value!r}", changed(lambda parts, value=value: parts.metadata.update(format=value))
    yield "bytes behind", changed(lambda parts: setattr(parts, "extra", b"x"))
    yield "no bytes", b""


def _set(name: str, tensor: np.ndarray) -> Callable[[Parts], object]:
    return lambda parts: parts.tensors.update({name: np.ascontiguousarray(tensor)})


def _exchange(first: str, second: str) -> Callable[[Parts], object]:
    def exchange(parts: Parts) -> None:
        parts.tensors[first], parts.tensors[second] = parts.tensors[second], parts.tensors[first]

    return exchange


def _say(text: str) -> Callable[[Parts], object]:
    return lambda parts: setattr(parts, "entry_text", text)
