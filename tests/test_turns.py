"""The others wait for rank 0 outside of collectives, whose timeout is shorter than what it does here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from torch.distributed import HashStore

from lightning_mvp import ModelZoo
from lightning_mvp.turns import RankZeroError, failing_for_all, let_go, take_turns, wait_for_rank_zero

from .nursery import Nursery, free_port

RUN = "tests.turns_run:main"


def ranks(*acts: Callable[[], Any]) -> list[Any]:
    """Each rank in a thread, the acts one after the other; what came of each act, rank after rank."""
    store, came = HashStore(), [[], []]

    def work(rank: int) -> None:
        for act in acts:
            try:
                came[rank].append(take_turns(act, (store, rank, 2)))
            except Exception as error:
                came[rank].append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    return came


def test_the_other_waits_for_each_turn_and_fails_with_rank_0s_error():
    done: list[float] = []

    def act() -> int:
        time.sleep(0.1)
        done.append(time.monotonic())
        return 7

    def fail() -> None:
        raise OSError("the disk is full")

    (first, failed, after), (told, other, later) = ranks(act, fail, act)
    assert (first, after, told, later) == (7, 7, None, None)
    assert isinstance(failed, OSError)
    assert isinstance(other, RankZeroError)
    assert "has failed. OSError: the disk is full" in str(other)
    assert len(done) == 2


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """The strategy of each of two tasks of SLURM's, where nobody ends one because the other has failed."""
    said = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_PROCID": 0, "SLURM_NODEID": 0, "SLURM_JOB_ID": 12}
    for name, value in {**said, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)

    def strategy(rank: int, seconds: float = 20) -> Any:
        timeout = timedelta(seconds=seconds)
        return SimpleNamespace(cluster_environment=SLURMEnvironment(), world_size=2, global_rank=rank, _timeout=timeout)

    yield strategy
    let_go()


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_of_slurms_waits_for_rank_0_before_there_is_a_group_and_fails_with_it(
    slurm: Callable[..., Any], fails: bool
):
    ended: list[tuple[float, str]] = []

    def other() -> None:
        try:
            wait_for_rank_zero(slurm(1))
            ended.append((time.monotonic(), ""))
        except RankZeroError as error:
            ended.append((time.monotonic(), str(error)))

    waits = threading.Thread(target=other)
    waits.start()
    with contextlib.suppress(FileNotFoundError), failing_for_all():
        time.sleep(0.3)
        voted = time.monotonic()
        if fails:
            raise FileNotFoundError("no zoo")
    if not fails:
        wait_for_rank_zero(slurm(0))
    waits.join(timeout=10)
    ((when, problem),) = ended
    assert when > voted
    assert problem == ("Rank 0, for which this rank waited, has failed. FileNotFoundError: no zoo" if fails else "")


def test_a_rank_0_that_never_comes_is_told(slurm: Callable[..., Any]):
    with pytest.raises(TimeoutError, match=r"Expected rank 0 to be at 127\.0\.0\.1:\d+ within 0:00:00\.100000"):
        wait_for_rank_zero(slurm(1, seconds=0.1))


@pytest.mark.slow
def test_no_collective_gives_up_while_rank_0_opens_a_zoo_and_writes_and_only_it_looks_at_the_zoo(
    nursery: Nursery, tmp_path: Path
):
    result = nursery.run(RUN, tmp_path, "prune", ranks=2)
    assert result.well, result.text[-3000:]
    assert len(ModelZoo(tmp_path / "0" / "zoo")) == 1
    assert not (tmp_path / "1").exists()
    result = nursery.run(RUN, tmp_path, "again", ranks=2)
    assert None not in result.codes
    assert 0 not in result.codes
    assert "FileExistsError: The zoo" in result.line
    assert "RankZeroError: Rank 0, for which this rank waited, has failed. FileExistsError: The zoo" in result.line
