"""``examples/04_sweep.sh``: killed half-way, and finished when it is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_mvp.zoo.zoo import ModelZoo

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "examples" / "04_sweep.sh"
TASKS = 12


def start(home: Path) -> subprocess.Popen[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160"}
    with (home / "output.txt").open("a") as output:
        return subprocess.Popen(
            ["sh", str(SCRIPT), str(home)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def entries(home: Path) -> dict[str, int]:
    folder = home / "zoos" / "glyphs-resnet_mini" / "tasks"
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_the_sweep_is_killed_half_way_and_finishes_when_it_is_run_again(tmp_path: Path) -> None:
    first = start(tmp_path)
    deadline = time.monotonic() + 240
    while len(entries(tmp_path)) < TASKS // 3 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)  # the shell, the sweep and its workers
    assert first.wait() == -signal.SIGKILL, (tmp_path / "output.txt").read_text()[-3000:]
    before = entries(tmp_path)
    assert TASKS // 3 <= len(before) < TASKS
    zoo = ModelZoo(tmp_path / "zoos" / "glyphs-resnet_mini")
    assert set(zoo.verify().values()) == {None}, "what is visible is whole"

    assert start(tmp_path).wait(timeout=240) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    after = entries(tmp_path)
    assert len(after) == TASKS
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert set(zoo.verify().values()) == {None}
    said = (tmp_path / "output.txt").read_text()
    assert f"{TASKS} jobs: {TASKS - len(before)} done, {len(before)} there already" in said
    assert f"{TASKS} entries" in said
