"""With this folder in PYTHONPATH every process writes which images its training loader hands out, into ``$SPY``.

Each line is a pass over one rank's share: the task, the number of ranks, the rank, the epoch, the images.
"""

import json
import os
from pathlib import Path

from lightning_mvp.tasks.loader import TaskLoader

_draw = TaskLoader._draw


def spied(self, epoch):
    drawn = _draw(self, epoch)
    if self.train:
        line = {
            "task": self.facts.name,
            "world_size": self.world_size,
            "rank": self.rank,
            "epoch": epoch,
            "images": drawn[0].tolist(),
            "process": os.getpid(),
        }
        with Path(os.environ["SPY"], f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return drawn


TaskLoader._draw = spied
