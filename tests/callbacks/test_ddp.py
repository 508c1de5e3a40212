"""Two processes on gloo: every rank decides alike, it is noticed if one does not, and one that fails ends them all."""

from __future__ import annotations

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_mvp import ModelZoo

from ..nursery import Ended, Nursery, launched
from .ddp_run import one_decision
from .user import content

pytestmark = pytest.mark.xdist_group("ddp")  # one process makes what several tests look at
SECONDS = 30  # from one rank's failure to the end of all; a hang would take gloo's half hour


def run(nursery: Nursery, folder: Path, case: str, launcher: str = "forked") -> Ended:
    """One case of ddp_run in two processes: forked as if a launcher had started them, or really by a launcher."""
    if launcher == "forked":
        return nursery.run("tests.callbacks.ddp_run:main", folder, case, ranks=2, limit=300)
    return launched(launcher, "tests.callbacks.ddp_run", folder, case)


def traces(folder: Path) -> list[list[dict[str, object]]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("trace*"))]


@pytest.fixture(scope="module")
def agreed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    result = run(nursery, folder, "agree,decide")
    assert result.well, result.text[-3000:]
    return folder


def require_agreement(folder: Path) -> None:
    ranks = traces(folder)
    assert len(ranks) == 2
    # Batches, not steps: two make a step, the last of an epoch of five makes one alone.
    assert [line["step"] for line in ranks[0]] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8]
    rounds = [now["step"] for before, now in pairwise(ranks[0]) if before["masks"] != now["masks"]]
    assert rounds == [2, 4, 6]
    for one, two in zip(*ranks, strict=True):
        for what in ("masks", "parameters", "optimizer", "sums", "importance"):
            assert one[what] == two[what], f"{what} after step {one['step']}"


def test_ranks_agree_after_every_step_and_one_entry_is_written(agreed: Path):
    require_agreement(agreed)
    (entry,) = ModelZoo(agreed / "zoo").entries()
    assert entry.prototypes is not None, "of the first rank's images"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "torchrun", "ddp_spawn"])
def test_each_launcher_does_the_same_run_and_leaves_the_same_entry(
    nursery: Nursery, agreed: Path, tmp_path: Path, launcher: str
):
    result = run(nursery, tmp_path, "agree", launcher)
    assert result.well, result.text[-3000:]
    require_agreement(tmp_path)
    assert traces(tmp_path) == traces(agreed)
    one, two = ModelZoo(agreed / "zoo"), ModelZoo(tmp_path / "zoo")
    assert one.names == two.names
    files = [load_file(zoo.path / "tasks" / f"{zoo.names[0]}.safetensors") for zoo in (one, two)]
    assert list(files[0]) == list(files[1])
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_two_ranks_decide_like_one_process_from_equal_gradients(agreed: Path, tmp_path: Path):
    one_decision(tmp_path, 1, "auto")
    masks = {path.name: path.read_text() for folder in (agreed, tmp_path) for path in folder.glob("masks*")}
    assert sorted(masks) == ["masks1-0", "masks2-0", "masks2-1"]
    assert len(set(masks.values())) == 1


def test_ranks_that_decide_differently_are_stopped_at_the_first_round(nursery: Nursery, tmp_path: Path):
    result = run(nursery, tmp_path, "own-gradients")
    assert 0 not in result.codes
    assert "masks of pruning round 1 differ between ranks: [1] disagree with rank 0" in result.text
    assert not len(ModelZoo(tmp_path / "zoo"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["forked", "ddp", "torchrun"])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("rank-0", "RuntimeError: rank 0 met a bad image"),
        ("rank-1", "RuntimeError: rank 1 met a bad image"),
        ("full-disk", "No space left on device"),
    ],
)
def test_one_rank_that_fails_ends_all_with_its_error_and_leaves_the_zoo(
    nursery: Nursery, agreed: Path, tmp_path: Path, case: str, message: str, launcher: str
):
    shutil.copytree(agreed / "zoo", tmp_path / "zoo")
    before = content(tmp_path / "zoo")
    result = run(nursery, tmp_path, case, launcher)
    seconds = time.time() - (tmp_path / "failed").stat().st_mtime
    assert 0 not in result.codes
    assert message in result.text
    assert content(tmp_path / "zoo") == before
    assert seconds < SECONDS
