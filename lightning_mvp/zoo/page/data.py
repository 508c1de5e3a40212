"""What the page about a zoo shows, as plain JSON types: entries, families, layers. Needs no torch."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from lightning_mvp.version import __version__
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.lineage import Member, lineage
from lightning_mvp.zoo.summary import EntrySummary, differing_settings, kept_fractions, summarise
from lightning_mvp.zoo.zoo import ModelZoo

# What the page shows elsewhere, or what says nothing to a reader.
_SHOWN_ELSEWHERE = ("kept", "parents", "wave", "generation", "val_accuracy", "start_val_accuracy", "zoo")
# A longer value of an entry's own information is left out: the page is for people.
_MOST_CHARACTERS = 2000


def page_data(zoo: ModelZoo) -> dict[str, Any]:
    """All that the page shows, read from a zoo. Each entry is read and verified; damaged ones are shown as such.

    Args:
        zoo: The zoo to show. Hundreds of entries fit into memory: weights are counted and let go.

    Returns:
        ``"zoo"`` (facts of the whole), ``"groups"`` (name and units of each), ``"entries"`` (sorted by family and
        name), and ``"families"``. A family has ``"settings"``, what tells it from the others, ``"order"``, the indices
        of its entries with similar tasks side by side, and pairs of them in that order, the lower triangle row by row
        in thousandths: ``"iou"`` of the masks, ``"chance"``, the IoU of random masks of the same widths (one number if
        it is the same for all pairs), and ``"similarity"`` by the measure that ``"measure"`` names. A family of fewer
        than two sound entries has no pairs.

    Example:
        >>> import tempfile
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2})
        >>> found = page_data(zoo)
        >>> found["groups"], found["entries"]
        ([{'name': 'conv', 'units': 2}], [])
    """
    summaries = summarise(zoo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Damaged entries are on the page, with the reason.
        members = {member.name: member for member in lineage(zoo)}
    entries: list[dict[str, Any]] = []
    sound: dict[int, ZooEntry] = {}
    for summary in summaries:
        entry, problem = _read(zoo, summary)
        if entry is None and problem is None:
            continue  # It was removed since it was listed.
        if entry is not None:
            # Masks and prototypes are all that pairs are made of.
            sound[len(entries)] = replace(entry, weights={}, importance={}, head={})
        entries.append(_entry(zoo, summary, entry, members.get(summary.name), problem))
    names = dict.fromkeys(entry["family"] for entry in entries)
    settings = {each.family: each.settings for each in summaries if each.problem is None and each.config == each.family}
    differing = differing_settings(settings)
    return {
        "zoo": {
            "name": zoo.path.resolve().name,
            "format": zoo.version,
            "backbone": (zoo.recipe or {}).get("model"),
            "theta0": zoo.theta0_fingerprint[:12],
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": __version__,
        },
        "groups": [{"name": name, "units": units} for name, units in zoo.group_sizes.items()],
        "entries": entries,
        "families": [
            {
                "name": family,
                "settings": differing.get(family, {}),
                **_pairs({i: sound[i] for i in sound if entries[i]["family"] == family}),
            }
            for family in names
        ],
    }


def _read(zoo: ModelZoo, summary: EntrySummary) -> tuple[ZooEntry | None, str | None]:
    if summary.problem is not None:
        return None, summary.problem
    try:
        return zoo[summary.name], None
    except DamagedEntryError as error:
        return None, str(error)
    except KeyError:
        return None, None


def _entry(
    zoo: ModelZoo, summary: EntrySummary, entry: ZooEntry | None, member: Member | None, problem: str | None
) -> dict[str, Any]:
    """One entry. Of a damaged one only what its file's name and size tell."""
    own = {
        "name": summary.name,
        "task": summary.task or summary.name.rpartition("--")[0],
        "classes": [],
        "family": summary.family,
        "size": summary.size,
        "written": _written(zoo, summary.name),
        # A page is handed on: where the zoo lay is nobody's concern.
        "problem": None if problem is None else problem.replace(f"{zoo.path}{os.sep}", ""),
    }
    if entry is None:
        return own
    info = entry.info
    start = info.get("start_val_accuracy")
    return {
        **own,
        "classes": list(entry.facts["classes"]),
        "wave": None if member is None else member.wave,
        "generation": None if member is None else member.generation,
        "parents": [] if member is None else list(member.parents),
        "accuracy": summary.accuracy,
        "start": start if isinstance(start, (int, float)) else None,
        "kept": kept_fractions(info),
        "removed": 1 - sum(map(np.count_nonzero, entry.masks.values())) / sum(map(len, entry.masks.values())),
        "parameters": sum(int(np.size(value)) for value in entry.weights.values()),
        "widths": [int(mask.sum()) for mask in entry.masks.values()],
        "facts": {name: value for name, value in entry.facts.items() if name not in ("name", "classes")},
        "config": entry.config,
        "info": {
            name: value
            for name, value in info.items()
            if name not in _SHOWN_ELSEWHERE and len(json.dumps(value)) <= _MOST_CHARACTERS
        },
    }


def _written(zoo: ModelZoo, name: str) -> str | None:
    """When the entry's file was written last, in UTC: entries themselves keep no date."""
    try:
        seconds = zoo.file(name).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _pairs(entries: dict[int, ZooEntry]) -> dict[str, Any]:
    """The pairs of one family's sound entries, given by their index."""
    if len(entries) < 2:
        return {"order": list(entries)}
    from lightning_mvp.zoo.picture import relations

    if len({None if entry.prototypes is None else entry.prototypes.shape[1] for entry in entries.values()}) > 1:
        # Prototypes of another backbone, or of some entries only, can't be compared: shared classes are.
        entries = {i: replace(entry, prototypes=None) for i, entry in entries.items()}
    found = relations(list(entries.values()))
    index = {entry.name: i for i, entry in entries.items()}
    chance = _thousandths(found.random_iou)
    alike = Counter(chance)
    return {
        "order": [index[name] for name in found.names],
        "iou": _thousandths(found.iou),
        "chance": chance[0] if len(alike) == 1 else chance,
        "similarity": _thousandths(found.similarity),
        "measure": found.measure,
        "correlation": None if found.correlation is None else round(found.correlation, 3),
    }


def _thousandths(matrix: np.ndarray) -> list[int]:
    """The lower triangle without the diagonal, row by row."""
    return [round(1000 * value) for value in matrix[np.tril_indices(len(matrix), -1)].tolist()]
