"""What several ranks must do together: decide alike, write once, and end their process group."""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import lightning as L
import torch
from torch import Tensor, distributed

from lightning_mvp.turns import take_turns

T = TypeVar("T")


@cache
def close_process_group_at_exit() -> None:
    """Ask for the process group to be destroyed when this process ends, once.

    Lightning does so for NCCL only. Gloo's threads may still hold tensors while Python shuts down, and then the rank
    aborts ("terminate called without an active exception", about one run in fifteen seen with ``ddp_spawn``): a run
    that has succeeded counts as failed.
    """
    atexit.register(_close)


def _close() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def require_equal_on_all_ranks(trainer: L.Trainer | L.Fabric, decision: str, round_: int) -> None:
    """Ranks that decide differently diverge silently: compare one hash, and raise on all of them.

    Args:
        trainer: the ranks.
        decision: what this rank decided, such as the masks' fingerprint.
        round_: the pruning round, for the message.

    Raises:
        RuntimeError: the decisions differ; the message names the ranks.
    """
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256(decision.encode()).digest()
    own = torch.tensor(list(digest), dtype=torch.int64, device=trainer.strategy.root_device)
    gathered = trainer.strategy.all_gather(own)
    assert isinstance(gathered, Tensor)
    differing = [rank for rank, other in enumerate(gathered) if not torch.equal(other, gathered[0])]
    if differing:
        raise RuntimeError(
            f"The masks of pruning round {round_} differ between ranks: {differing} disagree with rank 0. "
            "Gradients were not the same on all ranks; look for parameters that DDP does not synchronise."
        )


def on_rank_zero(trainer: L.Trainer | L.Fabric, act: Callable[[], T]) -> T:
    """Let rank 0 decide or write, however long it takes; all ranks get what it returns, and all fail if it does.

    Args:
        trainer: the ranks, whose process group exists.
        act: called on rank 0; what it returns is sent to the others.

    Raises:
        Exception: on rank 0, what ``act`` raises.
        RankZeroError: on the others, with what went wrong on rank 0.
    """
    if trainer.world_size == 1:
        return act()
    close_process_group_at_exit()
    answer = take_turns(act)
    return trainer.strategy.broadcast(answer)  # type: ignore[return-value]  # of rank 0
