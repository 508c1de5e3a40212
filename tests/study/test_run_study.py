"""What a comparison tells while it runs."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_mvp.study import run_study as module
from lightning_mvp.study.plan import PlannedPart

from .small_study import settings


def test_a_log_file_is_told_how_far_a_study_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def pool(workers: int, **_: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(module, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(module, "run_part", lambda name: time.sleep(0.06))
    monkeypatch.setattr(module, "seconds_per_step", lambda settings: 0.01)
    monkeypatch.setattr(module, "TELL_EVERY", 0.02)
    todo = [("zoo", [PlannedPart(f"source-{number}", 1.0) for number in range(3)])]
    text = io.StringIO()
    module._run_waves(tmp_path, settings(), todo, 1, Console(file=text, width=200))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("zoo: ")]
    assert {"0 of 3", "1 of 3", "2 of 3"} <= {" ".join(line.split()[1:4]) for line in lines}
    assert re.fullmatch(r"zoo: 3 of 3 parts done \(100 %\) after 0:00:0\d", lines[-1])
