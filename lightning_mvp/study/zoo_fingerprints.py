"""Whether a study's zoos stay the same while targets are measured: no target may add to the zoo that it starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lightning_mvp.files import write_json
from lightning_mvp.study.records import read_record, record_path

PART = "zoos"


def zoo_fingerprints(folder: Path) -> dict[str, str]:
    """Sixteen hexadecimal digits of each zoo in a study's folder, of the bytes and names of all its entries.

    Args:
        folder: of the study that made the zoos.

    Example:
        >>> zoo_fingerprints(Path("runs/study"))  # doctest: +SKIP
        {'generic': '0f3c2a91b2c4d5e6', 'grown-A': '9a8b7c6d5e4f3a2b', 'zoo': '1234567890abcdef'}
    """
    found = {}
    for description in sorted(folder.glob("*/zoo.json")):
        digest = hashlib.sha256()
        for entry in sorted((description.parent / "tasks").glob("*.safetensors")):
            digest.update(entry.name.encode() + hashlib.sha256(entry.read_bytes()).digest())
        found[description.parent.name] = digest.hexdigest()[:16]
    return found


def keep_fingerprints(folder: Path, before: dict[str, str], after: dict[str, str]) -> None:
    """Write to a study's records that its zoos stayed as they were.

    Args:
        folder: of the study that measures targets.
        before: of the zoos when it began.
        after: when it ended.

    Raises:
        RuntimeError: they differ; the zoos that do are named.
    """
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise RuntimeError(
            f"Expected the zoos to stay as they were while targets were measured, but {', '.join(changed)} changed. "
            f"Remove the records of targets in {folder / 'runs'} that began with them, and run them again."
        )
    record = {"part": PART, "before": before, "after": after}
    if read_record(folder, PART) != record:
        write_json(record_path(folder, PART), record, overwrite=True)


def read_fingerprints(folder: Path) -> dict[str, str]:
    """What :func:`keep_fingerprints` wrote last; empty if it never did."""
    record = read_record(folder, PART)
    return {} if record is None else record["after"]
