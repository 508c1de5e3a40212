"""Two processes on gloo: every rank decides alike, and it is noticed if one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lightning_mvp import ModelZoo

ROOT = Path(__file__).parents[2]


def run(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.callbacks.ddp_run", str(folder), how],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_masks_agree_on_all_ranks_and_one_entry_is_written(tmp_path: Path):
    result = run(tmp_path, "agree")
    assert result.returncode == 0, result.stderr[-3000:]
    fingerprints = {path.read_text() for path in tmp_path.glob("rank*")}
    assert len(list(tmp_path.glob("rank*"))) == 2
    assert len(fingerprints) == 1
    assert len(ModelZoo(tmp_path / "zoo")) == 1


def test_ranks_that_decide_differently_are_stopped_at_the_first_round(tmp_path: Path):
    result = run(tmp_path, "differ")
    assert result.returncode != 0
    assert "masks of pruning round 1 differ between ranks: rank(s) [1] disagree with rank 0" in result.stderr
    assert not len(ModelZoo(tmp_path / "zoo"))
