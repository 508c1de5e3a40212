"""Which entries of a zoo vote together: those of one pruning config, and what was grown from them. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.zoo import ModelZoo

START = "vote"  # what the config of a grown entry says under "start"


def is_grown(config: Any) -> bool:
    """Whether an entry of this config began with a vote of other entries; of what is no config, it did not."""
    return isinstance(config, Mapping) and config.get("start") == START


def families(zoo: ModelZoo) -> dict[str, tuple[str, ...]]:
    """The entries that vote together: those of one pruning config, and those that were grown from them.

    A family is named by the hash of its seeds' config. Without grown entries this is ``zoo.configs``.

    Returns:
        Hash of the seeds' config → names of the family's entries, both sorted.

    Example:
        >>> import tempfile, numpy as np
        >>> families(ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2}))
        {}
    """
    found: dict[str, list[str]] = {}
    for key, names in zoo.configs.items():
        found.setdefault(_family(zoo, key, names), []).extend(names)
    return {key: tuple(sorted(found[key])) for key in sorted(found)}


def family_of(name: str, config: Mapping[str, Any]) -> str:
    """The family of an entry, from its name and its config.

    Example:
        >>> family_of("pets--0a1b2c3d", {"start": "vote", "family": "4b5bcf91"}), family_of("cars--4b5bcf91", {})
        ('4b5bcf91', '4b5bcf91')
    """
    family = config.get("family") if is_grown(config) else None
    return family if isinstance(family, str) else name.rpartition("--")[2]


def config_of(zoo: ModelZoo, key: str) -> dict[str, Any]:
    """The config of this hash, from the first of its entries whose header can be read; empty if there is none."""
    for name in zoo.configs.get(key, ()):
        try:
            return dict(zoo.header(name)["config"])
        except (DamagedEntryError, KeyError):
            continue
    return {}


def told_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In which settings two configs differ, for people.

    Example:
        >>> told_apart({"seed": 0, "training": {"learning_rate": 0.1}}, {"seed": 0, "training": {"learning_rate": 0.2}})
        'learning_rate 0.1, not 0.2'
    """
    flat = [
        {**{name: value for name, value in each.items() if name != "training"}, **(each.get("training") or {})}
        for each in (one, other)
    ]
    differing = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    few = [f"{name} {flat[0].get(name)}, not {flat[1].get(name)}" for name in differing[:3]]
    return "; ".join(few + (["…"] if len(differing) > 3 else []))


def _family(zoo: ModelZoo, key: str, names: Iterable[str]) -> str:
    """The family of entries of one config, from the first header that can be read: all of them say the same."""
    for name in names:
        try:
            return family_of(name, zoo.header(name)["config"])
        except (DamagedEntryError, KeyError):
            continue
    return key
