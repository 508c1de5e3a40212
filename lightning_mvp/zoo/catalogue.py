"""What can be known of thousands of entries without opening each: one file beside them, made anew where it is stale.

``<zoo>/catalogue.safetensors`` holds names, classes, preprocessing and prototypes of the entries, and for each the
size, time and inode of its file when it was read. It is a cache: every use compares it with the folder, reads what is
new, and replaces the file whole, so that writers of entries need not know of it, and of two that write it either's will
do. Needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lightning_mvp.files import read_listed, write_whole
from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.entry_file import SUFFIX
from lightning_mvp.zoo.strict_json import parse_json
from lightning_mvp.zoo.tensor_file import open_tensors
from lightning_mvp.zoo.zoo import ModelZoo

CATALOGUE = "catalogue.safetensors"
FORMAT = "lightning-mvp-catalogue-1"
# A catalogue of more is damage, or an attack on memory: a hundred thousand entries of ten classes take half of it.
MOST_BYTES = 8 << 30

Stamp = tuple[int, int, int]
UNKNOWN: Stamp = (-1, -1, -1)


@dataclass(frozen=True)
class Card:
    """What the catalogue says of one entry.

    Args:
        classes: the task's class names.
        seen_by: preprocessing, the task's facts but for its name and classes.
        has_head: whether LEEP can be computed.
        prototypes: ``(classes, D)`` float32 class means of θ⁰'s features, or None.
    """

    classes: tuple[str, ...]
    seen_by: dict[str, Any] = field(repr=False)
    has_head: bool
    prototypes: np.ndarray | None = field(repr=False)


def catalogue(zoo: ModelZoo) -> dict[str, Card]:
    """The cards of all sound entries, by name, sorted; the file is made or renewed where it has to be.

    That a card is there says nothing of the entry's weights: ``zoo[name]`` checks them.

    Returns:
        Name → card. Entries whose header or prototypes are damaged are named in a warning each, and left out.

    Raises:
        FileNotFoundError: the zoo's folder is gone.
    """
    present = _stamps(zoo)
    stored = _read(zoo)
    cards: dict[str, Card] = {}
    changed = len(stored) != len(present)
    for name, stamp in present.items():
        if name in stored and stored[name][0] == stamp:
            cards[name] = stored[name][1]
            continue
        changed = True
        try:
            cards[name] = _card(zoo, name)
        except DamagedEntryError as error:
            warnings.warn(f"Skipping a damaged zoo entry: {error}", stacklevel=2)
        except KeyError:
            pass  # removed since the folder was listed
    if changed:
        with contextlib.suppress(OSError):  # a zoo that one may only read is read anew each time
            write_whole(zoo.path / CATALOGUE, _packed(zoo, cards, present), overwrite=True, parents=False)
    return cards


def stacked(cards: Sequence[Card]) -> tuple[np.ndarray, np.ndarray]:
    """Their prototypes one below the other, ``(rows, D)``, and the bounds of each card's rows, ``(cards + 1,)``."""
    parts = [card.prototypes for card in cards if card.prototypes is not None]
    return np.concatenate(parts), np.cumsum([0, *(len(part) for part in parts)])


def content_stamp(zoo: ModelZoo) -> str:
    """Sixteen hexadecimal digits that are others once a zoo's backbone or any of its entries is another, or newer."""
    told = json.dumps([zoo.fingerprint, _stamps(zoo)])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _stamps(zoo: ModelZoo) -> dict[str, Stamp]:
    """Entry → size, time and inode of its file, sorted by name."""
    try:
        with os.scandir(zoo.path / "tasks") as files:
            found = {file.name.removesuffix(SUFFIX): _stamp(file) for file in files if file.name.endswith(SUFFIX)}
    except FileNotFoundError:
        found = dict.fromkeys(zoo.names, UNKNOWN)  # none, or it says that the zoo is gone
    return {name: found[name] for name in sorted(found)}


def _stamp(file: os.DirEntry[str]) -> Stamp:
    try:
        status = file.stat()
    except OSError:  # a link to nothing, or just removed: reading it says what is wrong
        return UNKNOWN
    return (status.st_size, status.st_mtime_ns, status.st_ino & (2**63 - 1))


def _card(zoo: ModelZoo, name: str) -> Card:
    header = zoo.header(name, prototypes=True)
    facts = {key: value for key, value in header["facts"].items() if key not in ("name", "classes")}
    return Card(tuple(header["facts"]["classes"]), facts, header["has_head"], header["prototypes"])


def _packed(zoo: ModelZoo, cards: dict[str, Card], stamps: dict[str, Stamp]) -> bytes:
    """Prototypes of one width, the most frequent one, go below each other: others are damage, and are read again."""
    widths = [card.prototypes.shape[1] for card in cards.values() if card.prototypes is not None]
    width = max(sorted(set(widths)), key=widths.count) if widths else 0
    fitting = {n: c for n, c in cards.items() if c.prototypes is None or c.prototypes.shape[1] == width}
    rows = [np.zeros((0, width), np.float32) if c.prototypes is None else c.prototypes for c in fitting.values()]
    preprocessing: dict[str, int] = {}
    which = [
        preprocessing.setdefault(json.dumps(c.seen_by, sort_keys=True), len(preprocessing)) for c in fitting.values()
    ]
    about = {
        "zoo": zoo.fingerprint,
        "names": list(fitting),
        "classes": [list(card.classes) for card in fitting.values()],
        "preprocessing": [json.loads(text) for text in preprocessing],
        "which": which,
        "heads": [card.has_head for card in fitting.values()],
    }
    tensors: dict[str, np.ndarray] = {
        "about": np.frombuffer(json.dumps(about, separators=(",", ":")).encode(), np.uint8),
        "bounds": np.cumsum([0, *map(len, rows)], dtype=np.int64),
        "stamps": np.array([stamps[name] for name in fitting], np.int64).reshape(len(fitting), 3),
        "prototypes": np.concatenate([np.zeros((0, width), np.float32), *rows]),
    }
    return save(tensors, {"format": FORMAT})


def _read(zoo: ModelZoo) -> dict[str, tuple[Stamp, Card]]:
    """What the file says, if it is there and sound and of this zoo: it can always be made again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return read_listed(zoo.path / CATALOGUE, lambda path: _parsed(path, zoo.fingerprint))
    return {}


def _parsed(path: Path, zoo: str) -> dict[str, tuple[Stamp, Card]]:
    with open_tensors(path, MOST_BYTES) as file:
        if file.metadata.get("format") != FORMAT:
            raise ValueError("of another format")
        about = parse_json(file.read("about").tobytes())
        bounds, stamps, prototypes = (file.read(name) for name in ("bounds", "stamps", "prototypes"))
    names, classes = about["names"], about["classes"]
    columns = (classes, about["which"], about["heads"], stamps)
    if about["zoo"] != zoo or any(len(column) != len(names) for column in columns) or stamps.shape[1:] != (3,):
        raise ValueError("of another zoo, or damaged")
    if len(bounds) != len(names) + 1 or bounds[0] != 0 or bounds[-1] != len(prototypes) or (np.diff(bounds) < 0).any():
        raise ValueError("its prototypes are damaged")
    if prototypes.ndim != 2 or prototypes.dtype != np.float32 or not np.isfinite(prototypes).all():
        raise ValueError("its prototypes are damaged")
    cards = {}
    for i, (name, stamp) in enumerate(zip(names, stamps.tolist(), strict=True)):
        rows = prototypes[bounds[i] : bounds[i + 1]]
        if len(rows) not in (0, len(classes[i])):
            raise ValueError("its prototypes are damaged")
        seen_by = about["preprocessing"][about["which"][i]]
        cards[name] = (
            tuple(stamp),
            Card(tuple(classes[i]), seen_by, bool(about["heads"][i]), rows if len(rows) else None),
        )
    return cards  # type: ignore[return-value]
