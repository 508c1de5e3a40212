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
from omegaconf import OmegaConf

from lightning_mvp import (
    ImageData,
    Masks,
    MetaVoteModule,
    TaskDataModule,
    VoteReport,
    apply_masks,
    shrink,
    voted_backbone,
)
from lightning_mvp.apps.task_choice import data_of
from lightning_mvp.pruning.settings import PruningSettings
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


def _criterion(names: Names, commands: list[list[str]]) -> None:
    """Object and command say the same; tests/pruning/test_criteria.py prunes with it."""
    ((command, *overrides),) = commands
    assert command == "mvp-prune"
    stored = PruningSettings(criterion=compose_for("prune", *overrides)["pruning"]["criterion"]).to_dict()["criterion"]
    assert stored == names["callback"].settings.to_dict()["criterion"]
    assert stored == {"_target_": "my_criterion.BatchNormScale", "power": 2.0}


def _data_set(names: Names, commands: list[list[str]]) -> None:
    module: TaskDataModule = names["module"]
    assert module.facts.classes == ("every-2", "every-4")
    ((command, *overrides),) = commands
    assert command == "mvp-prune"
    data = data_of(OmegaConf.create(compose_for("prune", *overrides)))
    assert data.classes == ("every-2", "every-3", "every-4", "every-5")
    assert len(data.train) > len(data.test) > 0


def _kind_of_group(names: Names, commands: list[list[str]]) -> None:
    groups, net = names["groups"], names["net"]
    assert groups.sizes == {"4.hidden": 16}
    masks = Masks({"4.hidden": torch.arange(16) % 2 == 0})
    small = shrink(net, groups, masks)
    assert small[4].up.shape == (8, 8)
    images = torch.randn(2, 3, 8, 8)
    apply_masks(net, groups, masks)
    torch.testing.assert_close(small(images), net(images))


CHECKS: dict[str, Callable[[Names, list[list[str]]], None]] = {
    "A similarity": _similarity,
    "A merge": _merge,
    "A criterion": _criterion,
    "A data set": _data_set,
    "A kind of group": _kind_of_group,
}


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
