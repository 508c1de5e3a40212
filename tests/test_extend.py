"""The examples of docs/extend.md: each class is short, stands in a file of its own, and does what its section says.

A section of the page has a block that begins with ``# name.py``, the file of a user; a block that uses it; and perhaps
commands. A further section needs an entry in `CHECKS`, which gets the names that the blocks defined, and the commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mvp import ImageData, MetaVoteModule, TaskDataModule, VoteReport, voted_backbone
from lightning_mvp.tasks.data import Part
from lightning_mvp.zoo import ModelZoo

from .apps.test_config import compose_for
from .voting.conftest import CLASSES, World, world, zoo

__all__ = ["world", "zoo"]

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
Names = dict[str, Any]


def _voted_by(commands: list[list[str]], names: Names) -> MetaVoteModule:
    """What a section's `mvp-vote` votes, on the data and the zoo of these tests."""
    ((command, *overrides),) = commands
    assert command == "mvp-vote"
    return MetaVoteModule.from_zoo(names["zoo"], names["data"], **compose_for("vote", *overrides)["vote"])


def _similarity(names: Names, commands: list[list[str]]) -> None:
    report: VoteReport = names["report"]
    nearest = report.neighbours[0]
    assert nearest.shared_classes == 3
    assert nearest.score > 2 * 3 - 1.1, "LEEP of three classes is above −log 3"
    assert _voted_by(commands, names).report["neighbours"] == report.to_dict()["neighbours"]


def _merge(names: Names, commands: list[list[str]]) -> None:
    mean, _ = voted_backbone(names["zoo"], names["data"], neighbours=3)
    ours, again = names["module"].backbone.state_dict(), _voted_by(commands, names).backbone.state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert not torch.equal(ours["conv1.weight"], mean.state_dict()["conv1.weight"])
    median = names["Median"](0.5).combine(
        torch.tensor([[1.0, 9.0], [2.0, 0.0], [9.0, 3.0]]),
        torch.tensor([[True, True], [True, False], [True, True]]),
        torch.ones(3),
        torch.tensor([0.0, 1.0]),
    )
    assert median.tolist() == [1.0, 2.0]


CHECKS: dict[str, Callable[[Names, list[list[str]]], None]] = {"A similarity": _similarity, "A merge": _merge}


@pytest.mark.parametrize("title", SECTIONS)
def test_a_class_of_ones_own_in_a_short_file_is_all_it_takes(
    title: str, world: World, zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: ModelZoo = zoo(*(world.entry(name, name, seed) for seed, name in enumerate(("abc", "abf", "efg"))))
    images = Part(world.images, world.labels)
    data = TaskDataModule(ImageData("colours", CLASSES, images, images, images), tuple("abc"), "target", augment="none")
    names: Names = {"zoo": str(made.path), "data": data}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    commands: list[list[str]] = []
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[title], re.M | re.S):
        first, *rest = code.splitlines()
        if language == "bash":
            commands.append(shlex.split(code))
        elif re.fullmatch(r"# \w+\.py", first):
            assert len(rest) < 30
            Path(first[2:]).write_text(code)
        else:
            exec(code, names)
    CHECKS[title](names, commands)
