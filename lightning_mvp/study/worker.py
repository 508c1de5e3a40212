"""A worker process of a comparison, which runs one part after the other."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_module

from lightning_mvp.fitting.fit import quiet_lightning
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.study_settings import StudySettings

_runner: PartRunner | None = None


def start_worker(folder: str, settings: dict[str, Any]) -> None:
    """Make this process a worker with one thread."""
    global _runner
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    quiet_lightning()
    rank_zero_module.log.setLevel(logging.WARNING)  # else each of hundreds of votes shows a table
    _runner = PartRunner(Path(folder), StudySettings.from_dict(settings))


def _end_with_parent() -> None:
    """End with the parent process: if that is killed, a worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_part(part: str) -> str:
    """Run one part in a worker process started by :func:`start_worker`."""
    assert _runner is not None, "start_worker comes first"
    _runner.run(part)
    return part
