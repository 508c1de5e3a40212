from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_mvp.zoo import ModelZoo

from .writer import SHARED

ROOT = Path(__file__).parents[2]
WRITERS, EACH, READERS = 8, 50, 2


def _start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-m", "tests.zoo.writer", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def _result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result.pop("torch") is False
    return result


@pytest.mark.slow
def test_eight_writers_and_two_readers_at_once_see_whole_entries_only(tmp_path: Path) -> None:
    path, stop = tmp_path / "zoo", tmp_path / "stop"
    readers = [_start(path, "read", stop) for _ in range(READERS)]
    writers = [_start(path, number, EACH) for number in range(WRITERS)]
    try:
        won = {number: _result(writer)["won"] for number, writer in enumerate(writers)}
    finally:
        stop.touch()
    seen = [_result(reader) for reader in readers]

    zoo = ModelZoo(path)
    problems = zoo.verify()
    assert set(problems.values()) == {None}
    own = {name for name in zoo.names if name.startswith("own-")}
    assert len(own) == WRITERS * EACH == 400
    assert [reader["problems"] for reader in seen] == [{}] * READERS
    assert all(reader["reads"] > 0 for reader in seen)

    # Of those that raced for one name exactly one won, was told so, and its entry is there.
    assert sorted(task for tasks in won.values() for task in tasks) == sorted(SHARED)
    winner = {task: number for number, tasks in won.items() for task in tasks}
    shared = [zoo[name] for name in zoo.names if name.startswith("shared-")]
    assert {entry.facts["name"]: entry.info["writer"] for entry in shared} == winner
    assert not [file.name for folder in (path, path / "tasks") for file in folder.iterdir() if file.name[0] == "."]
    print(f"{WRITERS} writers, {len(zoo)} entries, {sum(reader['reads'] for reader in seen)} whole reads meanwhile")
