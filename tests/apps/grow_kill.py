"""``mvp-prune`` in a process that is killed while it adds an entry."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning_mvp.zoo.zoo import ModelZoo

from ..nursery import run_command


def prune_until(entries: str, *arguments: str) -> None:
    """Run the command; once so many entries are added, the next one kills the process in place of being added."""
    left, add = [int(entries)], ModelZoo.add

    def counted(zoo: ModelZoo, *options: Any, **more: Any) -> Any:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return add(zoo, *options, **more)

    ModelZoo.add = counted  # type: ignore[method-assign]
    run_command("prune", *arguments)
