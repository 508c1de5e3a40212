"""Two processes on gloo: rank 0 votes, the other builds what it is told."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mvp import MetaVoteModule, ModelZoo, TaskDataModule, create_backbone
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.training.decision import Decision, is_first_process

from ..callbacks.user import FACTS, RECIPE, VIT_RECIPE
from ..nursery import Nursery
from .two_ranks import run, seen

ZooOf = Callable[[str], ModelZoo]


SLOW = [("ddp", "resnet"), ("ddp_spawn", "resnet"), ("torchrun", "vit")]


@pytest.mark.parametrize(
    ("how", "kind"), [("forked", "resnet"), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_rank_0_votes_and_the_other_gets_all_of_it_without_a_zoo(
    how: str, kind: str, nursery: Nursery, zoo_of: ZooOf, tmp_path: Path
):
    shutil.copytree(zoo_of(kind).path, tmp_path / "zoo")
    result = run(nursery, tmp_path, "vote", how)
    assert result.well, result.text[-3000:]

    first, other = seen(tmp_path, "configured")
    # Processes that are spawned get the module that their parent had voted.
    assert (first.pop("waited"), other.pop("waited")) == (False, how != "ddp_spawn")
    assert first == other
    assert not first["drew"]
    accuracy, decided = json.loads((tmp_path / "eager.json").read_text())
    assert accuracy > 1 / 3
    assert first["weights"] == decided
    assert first["teacher"]
    assert len(first["features"]) > 0
    assert first["frozen"] == ["head.bias"]
    assert first["hparams"] == first["initial"]
    assert first["hparams"]["recipe"]["kept"] == first["report"]["widths"]
    assert len(first["report"]["neighbours"]) == 2

    trained = seen(tmp_path, "fitted")
    assert trained[0]["parameters"] == trained[1]["parameters"] != first["parameters"]
    for before, after in zip((first, other), trained, strict=True):
        assert after["steps"] == 4
        assert after["hparams"] == before["hparams"]
    if how != "ddp_spawn":  # for validation, after fit
        assert [of_rank["weights"] for of_rank in seen(tmp_path, "again")] == [rank["weights"] for rank in trained]


def test_no_rendezvous_or_collective_gives_up_while_rank_0_votes(nursery: Nursery, zoo_of: ZooOf, tmp_path: Path):
    shutil.copytree(zoo_of("resnet").path, tmp_path / "zoo")
    result = run(nursery, tmp_path, "slow")
    assert result.well, result.text[-3000:]


@pytest.mark.slow
def test_ranks_that_voted_each_by_itself_take_rank_0s_vote(nursery: Nursery, zoo_of: ZooOf, tmp_path: Path):
    shutil.copytree(zoo_of("resnet").path, tmp_path / "zoo")
    result = run(nursery, tmp_path, "unaware")
    assert result.well, result.text[-3000:]
    first, other = seen(tmp_path, "configured")
    assert first == other
    halves = {group: size // 2 for group, size in zoo_of("resnet").group_sizes.items()}
    assert first["report"]["widths"] == halves
    quarters = {group: size // 2 for group, size in halves.items()}
    assert seen(tmp_path, "pruned") == [[halves, quarters]] * 2


def test_a_vote_that_fails_before_there_is_a_process_group_fails_on_all_ranks(nursery: Nursery, tmp_path: Path):
    result = run(nursery, tmp_path, "vote")
    assert result.codes == [1, 1], result.text[-3000:]
    assert "FileNotFoundError: Expected a zoo" in result.text
    assert "RankZeroError: Rank 0, for which this rank waited, has failed. FileNotFoundError: Expected" in result.line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "has_zoo", "message"),
    [
        ("touch", True, "its MetaVoteModule waits for rank 0's vote and has no `backbone` before the Trainer starts"),
        ("nobody", True, "but the process that the Trainer made rank 0 waits, too"),
    ],
)
def test_what_goes_wrong_on_one_rank_ends_all_with_its_message(
    scene: str, has_zoo: bool, message: str, nursery: Nursery, zoo_of: ZooOf, tmp_path: Path
):
    if has_zoo:
        shutil.copytree(zoo_of("resnet").path, tmp_path / "zoo")
    start = time.perf_counter()
    result = run(nursery, tmp_path, scene)
    assert 0 not in result.codes
    assert message in result.text
    assert time.perf_counter() - start < 120, "a rank hung until it was timed out"


def test_a_rank_left_over_in_the_environment_is_told(
    target: TaskDataModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    module = MetaVoteModule.from_zoo(tmp_path / "nowhere", target)
    for name in ("backbone", "head", "report"):
        with pytest.raises(AttributeError, match=rf"waits for rank 0's vote.*`{name}`.*Use it on rank 0 only"):
            getattr(module, name)
    with pytest.raises(RuntimeError, match=r"the Trainer has one process only.*LOCAL_RANK=1.*Unset the variable"):
        fit_quietly(module, target, 2)


def test_a_misspelt_attribute_is_not_blamed_on_waiting(target: TaskDataModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    module = MetaVoteModule.from_zoo("nowhere", target)
    with pytest.raises(AttributeError, match="no attribute 'backbones'"):
        _ = module.backbones


@pytest.mark.parametrize("variable", ["NODE_RANK", "GROUP_RANK"])
def test_a_process_of_another_node_is_not_the_first(variable: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    monkeypatch.setenv(variable, "1")
    assert not is_first_process()
    monkeypatch.setenv(variable, "0")
    assert is_first_process()


@pytest.mark.parametrize("recipe", [RECIPE, VIT_RECIPE])
def test_a_decision_survives_the_wire_bit_for_bit(recipe: dict):
    backbone = create_backbone(recipe).to(memory_format=torch.channels_last)
    backbone.tied = next(backbone.parameters())  # two names of one tensor
    decision = Decision.of(backbone, {"recipe": recipe, "score": -0.1 + 2e-17})
    got = Decision.unpack(*decision.pack())
    assert got.hparams == decision.hparams
    state = backbone.state_dict()
    assert set(got.weights) == set(state)
    assert all(torch.equal(got.weights[name], tensor) for name, tensor in state.items())


def test_a_recipe_without_a_report_is_refused():
    with pytest.raises(ValueError, match="`recipe` and `report`"):
        MetaVoteModule(RECIPE, FACTS.to_dict(), None)
