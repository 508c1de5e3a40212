"""A zoo that has grown by two waves, without torch: two seeds of one config, and one of another config beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_mvp.zoo import ModelZoo, ZooEntry, config_hash, entry_id
from lightning_mvp.zoo.waves import family_members, growth_config

from .entries import CONFIG, GROUPS, THETA0, make_entry

FAMILY = config_hash(CONFIG)


def grown(zoo: ModelZoo, task: str, wave: int, parents: list[str], generation: int, **rule: Any) -> ZooEntry:
    family, members = family_members(zoo, FAMILY)
    config = growth_config(family, members, {"wave": wave, **rule})
    info = {"wave": wave, "generation": generation, "parents": parents, "val_accuracy": 0.5 + 0.1 * wave}
    return replace(make_entry(task, config, seed=wave + 7), name=entry_id(task, config), info=info)


def grown_zoo(path: Path) -> ModelZoo:
    """Seeds a, b; wave 1: c (of both); wave 2: a again (of c and b)."""
    zoo = ModelZoo.create(path, {"model": "mini"}, THETA0, GROUPS)
    for seed, task in enumerate("ab"):
        zoo.add(make_entry(task, seed=seed))
    zoo.add(make_entry("z", {"rounds": 9}))
    first = grown(zoo, "c", 1, [entry_id("b", CONFIG), entry_id("a", CONFIG)], 1)
    zoo.add(first)
    zoo.add(grown(zoo, "a", 2, [first.name, entry_id("b", CONFIG)], 2))
    return zoo
