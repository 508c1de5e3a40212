"""``mvp-prune start=vote`` grows a zoo by waves, ``mvp-vote add=true`` by use; reruns and kills change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.waves import WAVES
from lightning_mvp.zoo.zoo import ModelZoo

from ..nursery import Nursery
from .conftest import TINY, TINY_ROUNDS, Run, modified

SEEDS = (*TINY, *TINY_ROUNDS, "weights=null", "cut_between_rounds=true", "trainer.precision=32-true")
MANY = (*TINY[:3], "split.sources=6", *TINY[4:])
QUIET = ("trainer.enable_progress_bar=false", "trainer.precision=32-true")
GROW = ("-m", *MANY, *QUIET, "start=vote", "steps=2", "growth.neighbours=2", "growth.keep_worse=true")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zoo of two seeds is made, by the first test that needs it."""
    return tmp_path_factory.mktemp("seeds")


@pytest.fixture
def zoo(seeds: Path, tmp_path: Path, run: Run) -> ModelZoo:
    """A copy of the zoo of two seeds."""
    if not (seeds / "zoo" / "zoo.json").exists():
        done = run("prune", "-m", *SEEDS, "split.task=0,1", f"zoo={seeds / 'zoo'}", home=seeds)
        assert done.code == 0, done.text
    return ModelZoo(shutil.copytree(seeds / "zoo", tmp_path / "zoo"))


def require_equal(one: ModelZoo, two: ModelZoo) -> None:
    assert one.names == two.names
    for name in one.names:
        a, b = one[name], two[name]
        assert a.info.get("parents") == b.info.get("parents")
        for part in ("masks", "weights", "importance", "head"):
            mine, theirs = getattr(a, part), getattr(b, part)
            assert mine.keys() == theirs.keys()
            assert all(np.array_equal(mine[key], theirs[key]) for key in mine), (name, part)


@pytest.mark.slow
def test_a_sweep_grows_the_zoo_wave_by_wave_and_a_second_one_finds_it_done(
    zoo: ModelZoo, tmp_path: Path, run: Run
) -> None:
    sweep = (*GROW, "split.task=range(2,5)", "growth.first=2", f"zoo={zoo.path}")
    planned = run("prune", *sweep, "dry_run=true", home=tmp_path)
    assert "3 jobs: 3 planned" in planned.line
    assert not (zoo.path / WAVES).exists()
    assert run("prune", *sweep, home=tmp_path).code == 0
    members = lineage(zoo)
    assert [(member.task, member.wave) for member in members] == [
        *((f"source-00{task}", 0) for task in (0, 1)),
        *((f"source-00{task}", task - 1) for task in (2, 3, 4)),
    ]
    names = [member.name for member in members]
    assert [member.parents for member in members[2:]] == [
        (names[1], names[0]),
        (names[2], names[1]),
        (names[3], names[2]),
    ]
    before = modified(zoo.path)
    again = run("prune", *sweep, home=tmp_path)
    assert "3 jobs: 3 there already" in again.line
    assert modified(zoo.path) == before
    renewed = run("prune", *GROW, "split.task=2,3", "growth.wave=9", f"zoo={zoo.path}", home=tmp_path)
    assert renewed.code == 0, renewed.text
    assert [(member.task, member.wave) for member in lineage(zoo)][5:] == [("source-002", 9), ("source-003", 9)]
    assert lineage(zoo)[5].parents == lineage(zoo)[6].parents == (names[4], names[3])


@pytest.mark.slow
def test_a_sweep_that_was_stopped_ends_like_one_that_was_not_in_any_order_within_a_wave(
    zoo: ModelZoo, tmp_path: Path, run: Run, nursery: Nursery
) -> None:
    other = ModelZoo(shutil.copytree(zoo.path, tmp_path / "other"))
    waves = (*GROW, "growth.first=2", "growth.wave_size=2", "growth.which=nearest")
    assert run("prune", *waves, "split.task=2,3,4,5", f"zoo={zoo.path}", home=tmp_path).code == 0
    # The other way round; killed when the last of wave 1 is to be added.
    early = run("prune", *waves, "split.task=5,3", f"zoo={other.path}", home=tmp_path)
    assert early.code == 1
    assert "Expected all entries of the waves before wave 2" in early.line
    assert "source-002--" in early.line
    assert "split.task=2,3 first" in early.line
    sweep = (*waves, "split.task=2,5,4", f"zoo={other.path}")
    killed = nursery.run("tests.apps.grow_kill:prune_until", 0, *sweep, cwd=tmp_path, LIGHTNING_MVP_HOME=str(tmp_path))
    assert killed.codes == [-9], killed.text
    assert len(other) == 3
    assert run("prune", *sweep, home=tmp_path).code == 0
    require_equal(zoo, other)


def test_a_task_that_gets_worse_is_left_out_and_the_next_wave_goes_on(zoo: ModelZoo, tmp_path: Path, run: Run) -> None:
    worse = (*GROW[:-1], "growth.first=2", "optim.learning_rate=1000", f"zoo={zoo.path}")
    done = run("prune", *worse, "split.task=2", home=tmp_path)
    assert done.code == 0
    assert "Later waves go on without it" in done.line
    assert len(zoo) == 2
    again = run("prune", *worse, "split.task=2,3", "dry_run=true", home=tmp_path)
    assert "was worse than its start" in again.line
    assert "1 planned, 1 there already" in again.line
    waits = run("prune", *worse, "split.task=4", home=tmp_path)
    assert "split.task=3 first" in waits.line, "the refused one is not waited for"
    without = run("prune", *worse, "split.task=4", "growth.without=[3]", "growth.keep_worse=true", home=tmp_path)
    assert "split.task=2 first" in without.line, "what may be worse is another rule"


@pytest.mark.slow
def test_ranks_of_its_own_grow_one_entry(zoo: ModelZoo, tmp_path: Path, run: Run) -> None:
    two = ("split.task=2", "growth.first=2", f"zoo={zoo.path}", "trainer.devices=2", "strategy=ddp_cpu")
    done = run("prune", *GROW[1:], *two, home=tmp_path)
    assert done.code == 0, done.text
    (member,) = (member for member in lineage(zoo) if member.wave)
    assert zoo[member.name].config["training"]["devices"] == 2
    assert zoo[member.name].info["start_val_accuracy"] is not None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruning.pruning_ratio=0.5"], "Expected no `pruning` with start=vote"),
        (["cut_between_rounds=true"], "Expected cut_between_rounds=false with start=vote"),
        (["growth.among=9"], "`among` to be None with which='latest'"),
        (["growth.first=9"], "Expected `split.task` to be at least growth.first=9"),
        (["split.task=mine", "split.classes=[A,B]"], "Expected growth.wave with start=vote for a task of your own"),
        (["growth.family=none"], "family 'none' has none"),
        (["growth.without=3"], "Expected `growth.without` to be a list"),
        (["growth.wave=0"], "Expected `growth.wave` to be an integer of at least 1 or null"),
        (["start=zoo"], "Expected `start` to be theta0 or vote"),
        (["+growth.vote.similarity=best"], "Expected argument `similarity` to be one of"),
    ],
)
def test_what_a_growing_zoo_has_no_use_for_is_refused(
    overrides: list[str], words: str, zoo: ModelZoo, tmp_path: Path, run: Run
) -> None:
    done = run("prune", *GROW[1:], f"zoo={zoo.path}", *overrides, home=tmp_path)
    assert done.code == 1
    assert words in done.line
    assert len(zoo) == 2


def test_a_vote_adds_its_model_once_and_says_so(zoo: ModelZoo, tmp_path: Path, run: Run) -> None:
    vote = (*TINY, *QUIET, "vote.neighbours=2", f"zoo={zoo.path}", "optim.learning_rate=0.001")
    plain = run("vote", *vote, home=tmp_path)
    assert plain.code == 0, plain.text
    (folder,) = (tmp_path / "voted").iterdir()
    files, report = modified(folder), json.loads((folder / "report.json").read_text())
    assert "start_val_accuracy" not in report
    # The model is there: it is added, not trained again.
    done = run("vote", *vote, "add=true", home=tmp_path)
    assert done.code == 0, done.text
    assert "added target-000--" in done.line
    assert modified(folder) == files
    (added,) = (member for member in lineage(zoo) if member.wave)
    assert (added.task, added.wave, added.generation) == ("target-000", 1, 1)
    assert set(added.parents) == {neighbour["name"] for neighbour in report["neighbours"]}
    assert zoo[added.name].info["val_accuracy"] == report["val_accuracy"]
    again = run("vote", *vote, "add=true", home=tmp_path)
    assert f"{added.name} is in {zoo.path} already: skipped" in again.line
    named = run("vote", *vote, "add=true", f"output={tmp_path / 'mine'}", home=tmp_path)
    assert f"{added.name} is in the zoo {zoo.path} already, and stays as it is" in named.line
    report = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert report["entries"] == 3, "the grown entry may vote"


def test_a_vote_that_training_made_worse_is_written_and_not_added(zoo: ModelZoo, tmp_path: Path, run: Run) -> None:
    worse = (*MANY, *QUIET, "vote.neighbours=2", f"zoo={zoo.path}", "optim.learning_rate=1000", "add=true")
    worse += ("split.kind=source", "split.task=2")
    done = run("vote", *worse, home=tmp_path)
    assert done.code == 0, done.text
    assert "It was not added to the zoo" in done.line
    (folder,) = (tmp_path / "voted").iterdir()
    assert (folder / "model.ckpt").exists()
    assert len(zoo) == 2
    assert "is there already: skipped" in run("vote", *worse, home=tmp_path).line
