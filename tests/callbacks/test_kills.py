"""A run that is killed, wherever, and goes on from its newest checkpoint is the run that was never killed, bit for bit.

Every step of every life is compared, not only the end: see kill_run.Trace.
"""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_mvp import ModelZoo

from ..nursery import Nursery
from .kill_run import ROUNDS, SAVE_EVERY, STEPS, STEPS_PER_ROUND

SAVES = range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)
# Every moment of every step. Of ``last-`` a life meets one at each step: the next goes on from that step's other file.
EVERY_KILL = {
    "steps": [f"{step}:{how}" for step in range(1, STEPS) for how in ("step", "round", "saved")],
    "half": [f"{step}:{how}" for step in SAVES for how in ("half", "last-half")],
    "move": [f"{step}:{how}" for step in SAVES for how in ("move", "last-move")],
    "torn": [f"{step}:{how}" for step in SAVES for how in ("torn", "last-torn")],
    "end": [f"{STEPS}:{how}" for how in ("step", "round", "entry")],
}
FEW_KILLS = {
    # Rounds are at 3, 6 and 9, checkpoints at even steps, epochs end at 5 and 10, fine-tuning begins at 10.
    "resnet*1": "1:step 3:step 3:round 4:half 6:round 6:last-move 6:saved 8:last-torn 10:saved 12:torn 14:entry",
    "vit*1": "2:saved 3:round 6:last-half 7:step",
    "resnet*2": "2:saved 3:round 4:torn 6:saved 8:last-half 11:step",
}

CTRL_C = {"resnet*1": "3:ctrl-c-round 6:ctrl-c-step 8:ctrl-c-saved 11:ctrl-c-round", "resnet*2": "5:ctrl-c-step"}


def run(nursery: Nursery, folder: Path, *runs: str) -> dict[str, list[dict[str, Any]]]:
    """Start runs of kill_run.py; how the lives of each ended."""
    (folder / "tmp").mkdir()  # Lightning writes there first; dead runs leave much behind
    done = nursery.run("tests.callbacks.kill_run:main", folder, *runs, limit=1200, TMPDIR=str(folder / "tmp"))
    assert done.codes == [0], done.text[-3000:]
    lives: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, done.text.splitlines()):
        lives.setdefault(line["run"], []).append(line)
    return lives


def trace(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"trace{rank}.jsonl").read_text().splitlines()]


def log(folder: Path, rank: int = 0) -> str:
    return (folder / f"rank{rank}.log").read_text()


def require_the_same_run(whole: Path, killed: Path, ranks: int) -> None:
    """Each step that any life of ``killed`` did is that of ``whole``, and so is the entry."""
    for rank in range(ranks):
        expected = {line["step"]: line for line in trace(whole, rank)}
        steps = [line["step"] for line in trace(killed, rank)]
        assert sorted(expected) == list(range(1, STEPS + 1))
        assert steps[-1] == STEPS
        for line in trace(killed, rank):
            differing = [what for what in line if line[what] != expected[line["step"]][what]]
            assert not differing, f"rank {rank} differs at step {line['step']} in {differing}"
    one, two = ModelZoo(whole / "zoo"), ModelZoo(killed / "zoo")
    assert one.names == two.names
    for file in ("theta0.safetensors", f"tasks/{one.names[0]}.safetensors"):
        tensors = [load_file(folder / "zoo" / file) for folder in (whole, killed)]
        assert list(tensors[0]) == list(tensors[1])
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]), file


def require_killed_and_resumed(lives: list[dict[str, Any]], folder: Path) -> None:
    """All lives but the last were killed, no rank outlived another for long, and only the last wrote an entry."""
    *killed, last = lives
    for life in killed:
        # A rank may notice the death of another before its own moment comes.
        assert -signal.SIGKILL in life["ends"], f"{life}: {log(folder)[-3000:]}"
        assert all(end not in (0, None) for end in life["ends"]), life
        assert life["entries"] == 0, life
    assert set(last["ends"]) == {0}, log(folder)[-3000:]
    assert last["entries"] == 1
    assert "Restored all states" in log(folder)
    assert "images come in another order" not in log(folder)


QUICK = "2:half 3:round 7:step 12:entry"  # of resnet*1; every other model, kind of moment and Ctrl-C is slow


@pytest.fixture(scope="module")
def quick(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("quick")
    return folder, run(nursery, folder, "whole=resnet*1", f"killed=resnet*1,{QUICK.replace(' ', ',')}")


def test_a_killed_run_ends_like_one_that_was_not(quick: Any):
    folder, lives = quick
    require_killed_and_resumed(lives["killed"], folder / "killed")
    require_the_same_run(folder / "whole", folder / "killed", ranks=1)
    require_it_prunes_and_learns_until_the_end(folder / "whole")


@pytest.fixture(scope="module")
def few(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("few")
    wholes = [f"whole {model}={model}" for model in FEW_KILLS]
    killed = [f"killed {model}={model},{kills.replace(' ', ',')}" for model, kills in FEW_KILLS.items()]
    interrupted = [f"interrupted {model}={model},{kills.replace(' ', ',')}" for model, kills in CTRL_C.items()]
    return folder, run(nursery, folder, *wholes, *killed, *interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("model", FEW_KILLS)
def test_a_run_killed_anywhere_ends_like_one_that_was_not(few: Any, model: str):
    folder, lives = few
    require_killed_and_resumed(lives[f"killed {model}"], folder / f"killed {model}")
    require_the_same_run(folder / f"whole {model}", folder / f"killed {model}", ranks=int(model[-1]))
    require_it_prunes_and_learns_until_the_end(folder / f"whole {model}")


def require_it_prunes_and_learns_until_the_end(folder: Path) -> None:
    """Else equality would say nothing."""
    lines = trace(folder, 0)
    changes = [now["step"] for before, now in pairwise(lines) if before["masks"] != now["masks"]]
    assert changes == [STEPS_PER_ROUND * round_ for round_ in range(1, ROUNDS + 1)]
    assert len({line["optimizer"] for line in lines}) == STEPS
    assert len({line["parameters"] for line in lines}) >= STEPS - 1  # the learning rate is zero at the last step
    assert len({line["sums"] for line in lines}) > 2 * ROUNDS


@pytest.mark.slow
def test_ranks_have_equal_masks_and_parameters_after_every_step(few: Any):
    folder, _ = few
    for name in ("whole resnet*2", "killed resnet*2"):
        ranks = [trace(folder / name, rank) for rank in (0, 1)]
        for what in ("masks", "parameters", "optimizer", "sums", "importance"):
            by_step = [{line["step"]: line[what] for line in lines} for lines in ranks]
            assert by_step[0] == by_step[1], what


@pytest.mark.slow
@pytest.mark.parametrize("model", CTRL_C)
def test_ctrl_c_saves_says_how_to_go_on_and_leaves_the_zoo_to_the_resumed_run(few: Any, model: str):
    folder, lives = few[0] / f"interrupted {model}", few[1][f"interrupted {model}"]
    *interrupted, last = lives
    assert len(interrupted) == len(CTRL_C[model].split())
    for life in interrupted:
        assert set(life["ends"]) == {1}, life
        assert life["entries"] == 0, life
    assert set(last["ends"]) == {0}, log(folder)[-3000:]
    assert last["entries"] == 1
    said, path = log(folder), folder / "checkpoints" / "interrupted.ckpt"
    assert said.count(f"Go on with trainer.fit(..., ckpt_path={str(path)!r})") == len(interrupted)
    assert said.count(f"Restored all states from the checkpoint at {path}") == len(interrupted)


@pytest.mark.slow
def test_a_run_interrupted_by_ctrl_c_ends_exactly_like_one_that_was_not(few: Any):
    """On one process; over several only rank 0 can be asked for its random state, then."""
    require_the_same_run(few[0] / "whole resnet*1", few[0] / "interrupted resnet*1", ranks=1)


@pytest.mark.full
@pytest.mark.parametrize("model", ["resnet*1", "vit*1", "resnet*2", "vit*2"])
def test_a_run_killed_at_every_moment_of_every_step_ends_like_one_that_was_not(
    nursery: Nursery, tmp_path: Path, model: str
):
    killed = [f"{name}={model},{','.join(kills)}" for name, kills in EVERY_KILL.items()]
    lives = run(nursery, tmp_path, f"whole={model}", *killed)
    for name, kills in EVERY_KILL.items():
        assert len(lives[name]) == len(kills) + 1
        require_killed_and_resumed(lives[name], tmp_path / name)
        require_the_same_run(tmp_path / "whole", tmp_path / name, ranks=int(model[-1]))
