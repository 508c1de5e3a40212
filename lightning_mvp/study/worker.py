"""A worker process of a comparison: it holds one workshop and runs the parts it is handed."""

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
from lightning_mvp.study.parts import Workshop
from lightning_mvp.study.settings import StudySettings

_workshop: Workshop | None = None


def start_worker(folder: str, settings: dict[str, Any]) -> None:
    """Make this process a worker: one thread, one workshop."""
    global _workshop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    quiet_lightning()
    rank_zero_module.log.setLevel(logging.WARNING)  # a table for each vote of hundreds
    _workshop = Workshop(Path(folder), StudySettings.from_dict(settings))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_part(part: str) -> str:
    """Run one part in a worker process started by :func:`start_worker`."""
    assert _workshop is not None, "start_worker comes first"
    _workshop.run(part)
    return part
