"""The others wait for rank 0 outside of collectives, whose timeout is shorter than what it does here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import HashStore

from lightning_mvp import ModelZoo
from lightning_mvp.turns import RankZeroError, take_turns

from .nursery import Nursery

RUN = "tests.turns_run:main"


def ranks(*acts: Callable[[], Any]) -> list[Any]:
    """Each rank in a thread, the acts one after the other; what came of each act, rank after rank."""
    store, came = HashStore(), [[], []]

    def work(rank: int) -> None:
        for act in acts:
            try:
                came[rank].append(take_turns(act, (store, rank)))
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
