"""Run a scene of vote_ddp_run.py in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(folder: Path, scene: str, how: str = "torchrun") -> subprocess.CompletedProcess[str]:
    """``how``: "ddp" (Lightning starts a second process), "ddp_spawn", or "torchrun" (which starts both)."""
    launcher = TORCHRUN if how == "torchrun" else []
    strategy = "ddp" if how == "torchrun" else how
    return subprocess.run(
        [sys.executable, *launcher, "-m", "tests.modules.vote_ddp_run", str(folder), scene, strategy],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def seen(folder: Path, moment: str) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 wrote."""
    return [json.loads((folder / f"{moment}-{rank}.json").read_text()) for rank in (0, 1)]
