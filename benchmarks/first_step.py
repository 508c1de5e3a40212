"""`mvp-vote` with the words given, and a file that says when its first training step began."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning_mvp.apps import vote
from lightning_mvp.training.task import TaskModule

STAMP = "MVP_FIRST_STEP"  # the file; it gets seconds since the epoch

_step = TaskModule.training_step


def stamped(self: TaskModule, *arguments: Any) -> Any:
    """The training step; the first one is written down."""
    file = Path(os.environ[STAMP])
    if not file.exists():
        file.write_text(str(time.time()))
    return _step(self, *arguments)


if __name__ == "__main__":
    with patch.object(TaskModule, "training_step", stamped):
        vote.main()
