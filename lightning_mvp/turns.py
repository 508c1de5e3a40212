"""What rank 0 does alone while the others wait, however long it takes.

A rank that enters a collective early gives up after the collective's timeout (half an hour in Lightning), and NCCL then
ends its process. So the others wait outside: they ask the store, through which ranks find each other, until rank 0 says
that it is done, or what has gone wrong. A store whose rank 0 has ended says so, too, because nobody answers any more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from lightning.fabric.plugins.environments import SLURMEnvironment
from torch import distributed

from lightning_mvp.lightning_internals import default_store, group_store, timeout_of

T = TypeVar("T")

SHORTEST, LONGEST = 0.01, 1.0  # seconds between two questions: a tenth of the time that was waited
LINGER = 30.0  # seconds for the others to hear what has gone wrong before rank 0 ends
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
FAILED = "lightning_mvp/failed"

# The store that this process, rank 0, has opened before there is a process group; the group then uses the same.
_opened: list[Any] = []


class RankZeroError(RuntimeError):
    """Rank 0 has failed while this rank waited for it; the message says how."""


def take_turns(act: Callable[[], T], store: Any = None) -> T | None:
    """Let rank 0 act alone: the others wait for it outside of any collective, and fail if it does.

    All ranks call this in the same order.

    Args:
        act: called on rank 0.
        store: through which the ranks find each other, this process's rank and the number of ranks; None: those of the
            process group.

    Returns:
        What ``act`` returns on rank 0; None on the others.

    Raises:
        Exception: on rank 0, what ``act`` raises.
        RankZeroError: on the others, what it has raised there, or that rank 0 has ended.
    """
    if store is None:
        store, rank, ranks = group_store(), distributed.get_rank(), distributed.get_world_size()
    else:
        store, rank, ranks = store
    key = f"lightning_mvp/done/{store.add(f'lightning_mvp/turns/{rank}', 1)}"
    if rank:
        problem = _hear(store, key)
        if problem:
            raise RankZeroError(f"Rank 0, for which this rank waited, has failed. {problem}")
        return None
    try:
        answer = act()
    except Exception as error:
        _tell(store, key, error, ranks)
        raise
    except BaseException:
        store.set(key, "=It was stopped.")
        raise
    store.set(key, "=")
    return answer


def _tell(store: Any, key: str, error: Exception, ranks: int) -> None:
    """Say what has gone wrong, and stay until all have heard of it: the store may end with this process."""
    with suppress(RuntimeError):  # of the connection: then they know
        store.set(key, f"={type(error).__name__}: {error}")
        for _ in _pauses(LINGER):
            if store.add(f"{key}/heard", 0) >= ranks - 1:
                break


def _hear(store: Any, key: str) -> str:
    """What rank 0 says of its turn: nothing, or what has gone wrong."""
    try:
        for _ in _pauses():
            for name in (FAILED, key):
                if store.check([name]):
                    problem: str = store.get(name).decode()[1:]
                    store.add(f"{name}/heard", 1)
                    return problem
    except RuntimeError as error:  # of the connection, of several classes
        return f"It has ended, or can't be reached any more: {error}"
    raise AssertionError("pauses don't end")


def _pauses(limit: float = float("inf")) -> Iterator[None]:
    """Come back at growing intervals, for so many seconds."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < limit:
        yield
        time.sleep(min(LONGEST, SHORTEST + waited / 10))


# Before there is a process group --------------------------------------------------------------------------------------


@contextmanager
def failing_for_all() -> Iterator[None]:
    """If rank 0 raises an error in this context, the ranks that wait in :func:`wait_for_rank_zero` get it, too.

    Rank 0 opens the store for that at once, where an external launcher such as SLURM has started the other ranks.
    It is not needed elsewhere: Lightning starts its own ranks later, and torchrun ends the others when one fails.
    """
    store = _store_to_tell()
    try:
        yield
    except Exception as error:
        if store is not None:
            _tell(store, FAILED, error, int(os.environ.get("WORLD_SIZE") or os.environ["SLURM_NTASKS"]))
        raise


def _store_to_tell() -> Any:
    """A store at the address that the environment gives to all ranks, if it says that this is rank 0 of several."""
    said = {os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    if said != {"0"} or _has_agent() or (distributed.is_available() and distributed.is_initialized()):
        return None
    with suppress(RuntimeError, ValueError):  # it only helps to end the others sooner
        if "SLURM_PROCID" in os.environ and SLURMEnvironment.detect():
            slurm = SLURMEnvironment()
            return _open(slurm.main_address, slurm.main_port) if slurm.world_size() > 1 else None
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return _open(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return None


def _has_agent() -> bool:
    """Whether torch's elastic launcher has opened the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open(address: str, port: int) -> Any:
    if not _opened:
        _opened.append(default_store(address, port, first=True))
    return _opened[0]


def wait_for_rank_zero(strategy: Any) -> None:
    """Wait, however long it takes, until rank 0 comes here, too; called by all ranks before their next collective.

    Args:
        strategy: of the Trainer that all ranks have by now; there may be a process group already, or not.

    Raises:
        RankZeroError: rank 0 has failed or ended.
        TimeoutError: rank 0's process wasn't there within the strategy's own timeout.
    """
    environment = getattr(strategy, "cluster_environment", None)
    if environment is None or strategy.world_size == 1:
        return
    if distributed.is_initialized():
        take_turns(lambda: None)
        return
    if hasattr(strategy, "set_world_ranks"):
        strategy.set_world_ranks()  # those of `ddp_spawn` know theirs only from now on
    address, port, rank = environment.main_address, environment.main_port, strategy.global_rank
    if _has_agent():
        store = default_store(address, port, first=False)
    elif rank == 0:
        store = _open(address, port)
    else:
        _reach(address, port, timeout_of(strategy))
        store = default_store(address, port, first=False)
    take_turns(lambda: None, (store, rank, strategy.world_size))


def let_go() -> None:
    """The process group exists, and keeps the store as long as it needs it."""
    _opened.clear()


def _reach(address: str, port: int, limit: timedelta) -> None:
    """Wait until rank 0 has opened its store. Asked by torch itself, each answer would be a warning."""
    for _ in _pauses(limit.total_seconds()):
        with suppress(OSError), socket.create_connection((address, port), timeout=10):
            return
    raise TimeoutError(
        f"Expected rank 0 to be at {address}:{port} within {limit}, but it was not: its process has failed, or has not "
        "come as far as MetaVoteModule.from_zoo. Its own output says more. DDPStrategy(timeout=timedelta(hours=4)) "
        "waits for longer; among arguments of a command that is trainer.timeout=14400."
    )
