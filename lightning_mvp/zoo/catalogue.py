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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lightning_mvp.files import read_listed, write_whole
from lightning_mvp.zoo.entry_file import SEEN_BY, SUFFIX
from lightning_mvp.zoo.seen_by import preprocessing_of
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
        classes: The task's class names.
        seen_by: The preprocessing in which prototypes were made: facts without name and classes.
        has_head: Whether the entry has a head, so that LEEP can be computed.
        prototypes: ``(classes, D)`` float32 class means of θ⁰'s features, or None.
    """

    classes: tuple[str, ...]
    seen_by: dict[str, Any] = field(repr=False)
    has_head: bool
    prototypes: np.ndarray | None = field(repr=False)


def catalogue(zoo: ModelZoo) -> dict[str, Card]:
    """The cards of all entries whose header is readable, sorted by name; the file is made or renewed where needed.

    A card says nothing of the entry's weights: ``zoo[name]`` checks them.

    Returns:
        The cards by name. Entries whose header or prototypes are damaged are named in a warning each and left out.

    Raises:
        FileNotFoundError: The zoo's folder is gone.
    """
    present, stored = _stamps(zoo), _read(zoo)
    kept = {name: stored[name][1] for name, stamp in present.items() if name in stored and stored[name][0] == stamp}
    new = [name for name in present if name not in kept]
    read = zoo.each(lambda name: (name, _card(zoo, name)), new)
    cards = dict(sorted([*kept.items(), *read], key=lambda item: item[0]))
    if new or len(stored) != len(present):
        with contextlib.suppress(OSError):  # A zoo that may only be read is read anew each time.
            write_whole(zoo.path / CATALOGUE, _packed(zoo, cards, present), overwrite=True, parents=False)
    return cards


def stacked(cards: Sequence[Card]) -> tuple[np.ndarray, np.ndarray]:
    """Their prototypes one below the other, ``(rows, D)``, and the bounds of each card's rows, ``(cards + 1,)``."""
    parts = [card.prototypes for card in cards if card.prototypes is not None]
    return np.concatenate(parts), np.cumsum([0, *(len(part) for part in parts)])


def content_stamp(zoo: ModelZoo) -> str:
    """Sixteen hexadecimal digits that change when a zoo's backbone or the file of any of its entries does."""
    facts = json.dumps([zoo.fingerprint, _stamps(zoo)])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


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
    seen_by = header.get(SEEN_BY) or preprocessing_of(header["facts"])
    return Card(tuple(header["facts"]["classes"]), seen_by, header["has_head"], header["prototypes"])


def _packed(zoo: ModelZoo, cards: dict[str, Card], stamps: dict[str, Stamp]) -> bytes:
    """The catalogue's file. Prototypes go below each other, so that they have one width, the most frequent one.

    Entries with prototypes of another width are damaged or foreign; they are left out, and so read again each time.
    """
    widths = [card.prototypes.shape[1] for card in cards.values() if card.prototypes is not None]
    width = max(sorted(set(widths)), key=widths.count) if widths else 0
    fitting = {n: c for n, c in cards.items() if c.prototypes is None or c.prototypes.shape[1] == width}
    rows = [np.zeros((0, width), np.float32) if c.prototypes is None else c.prototypes for c in fitting.values()]
    seen_by = [json.dumps(card.seen_by, sort_keys=True) for card in fitting.values()]
    preprocessing = {text: number for number, text in enumerate(dict.fromkeys(seen_by))}
    about = {
        "zoo": zoo.fingerprint,
        "names": list(fitting),
        "classes": [list(card.classes) for card in fitting.values()],
        "preprocessing": [json.loads(text) for text in preprocessing],
        "which": [preprocessing[text] for text in seen_by],
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
    """What the file says; nothing where it is missing, damaged or of another zoo, as it can always be made again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return read_listed(zoo.path / CATALOGUE, lambda path: _parsed(path, zoo.fingerprint))
    return {}


def _parsed(path: Path, zoo: str) -> dict[str, tuple[Stamp, Card]]:
    with open_tensors(path, MOST_BYTES) as file:
        about = parse_json(file.read("about").tobytes())
        bounds, stamps, prototypes = (file.read(name) for name in ("bounds", "stamps", "prototypes"))
        if file.metadata.get("format") != FORMAT or about["zoo"] != zoo:
            return {}
    names, classes = about["names"], about["classes"]
    columns = (classes, about["which"], about["heads"], stamps, bounds[1:])
    whole = all(len(column) == len(names) for column in columns) and stamps.shape[1:] == (3,)
    # As many rows as classes, or none.
    fits = whole and all(rows in (0, len(own)) for rows, own in zip(np.diff(bounds), classes, strict=True))
    fits = fits and bounds[0] == 0 and bounds[-1] == len(prototypes)
    if not fits or prototypes.ndim != 2 or prototypes.dtype != np.float32 or not np.isfinite(prototypes).all():
        return {}
    cards = {}
    for i, (name, stamp) in enumerate(zip(names, stamps.tolist(), strict=True)):
        rows = prototypes[bounds[i] : bounds[i + 1]]
        seen_by = about["preprocessing"][about["which"][i]]
        cards[name] = (
            tuple(stamp),
            Card(tuple(classes[i]), seen_by, bool(about["heads"][i]), rows if len(rows) else None),
        )
    return cards
