"""Run a scene of vote_ddp_run.py in two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..nursery import Ended, Nursery, launched


def run(nursery: Nursery, folder: Path, scene: str, launcher: str = "forked") -> Ended:
    """Forked as if a launcher had started them, or really by a launcher."""
    if launcher == "forked":
        return nursery.run("tests.training.vote_ddp_run:main", folder, scene, ranks=2, limit=240)
    return launched(launcher, "tests.training.vote_ddp_run", folder, scene)


def seen(folder: Path, moment: str) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 wrote."""
    return [json.loads((folder / f"{moment}-{rank}.json").read_text()) for rank in (0, 1)]
