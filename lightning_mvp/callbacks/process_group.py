"""Ranks that end without a crash: torch's process group is closed before the interpreter is."""

from __future__ import annotations

import atexit
from functools import cache

from torch import distributed


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
