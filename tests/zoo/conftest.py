from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mvp.zoo import ModelZoo, ZooEntry

from .entries import CONFIG, GROUPS, THETA0, make_entry

__all__ = ["CONFIG", "GROUPS", "THETA0", "make_entry"]


@pytest.fixture
def entry() -> ZooEntry:
    return make_entry()


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., ModelZoo]:
    """Make a zoo with entries of these tasks."""

    def filled(*tasks: str) -> ModelZoo:
        zoo = ModelZoo.create(tmp_path / "zoo", {"model": "mini"}, THETA0, GROUPS)
        for seed, task in enumerate(tasks):
            zoo.add(make_entry(task, seed=seed))
        return zoo

    return filled
