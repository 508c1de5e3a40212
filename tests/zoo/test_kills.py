from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.leftovers import leftovers

from .entries import GROUPS
from .writer import LARGE, large_entry

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals and fork")


ROOT = Path(__file__).parents[2]


def _require_whole(zoo: ModelZoo, name: str) -> None:
    """Not only sound by its own sum: all of it is of one writer."""
    entry = zoo[name]
    assert (entry.weights["large"] == entry.info["seed"]).all(), name


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.full)])
def test_killed_writers_leave_whole_entries_and_hidden_files_that_are_cleaned_later(kills: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    zoo = ModelZoo.create(tmp_path / "zoo", {"model": "mini"}, LARGE, GROUPS)
    again = zoo.add(large_entry("again", 0)).name.removesuffix(".safetensors")
    tasks, written, hit = zoo.path / "tasks", 0, 0
    start = time.perf_counter()
    for seed in range(4):
        zoo.add(large_entry("again", seed), overwrite=True)
    spell = time.perf_counter() - start  # what four writes take on this machine, now
    command = [sys.executable, "-m", "tests.zoo.writer", str(zoo.path), "nursery"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for seed in range(kills):
            before = set(os.listdir(tasks))
            print(seed, file=nursery.stdin, flush=True)
            writer = int(nursery.stdout.readline())
            deadline = time.monotonic() + 60
            while set(os.listdir(tasks)) == before:  # it has begun
                assert time.monotonic() < deadline, "the writer does nothing"
            # Every other one at once, which is mostly in the first write, the others somewhere in the next ones.
            time.sleep(rng.uniform(0, spell) * (seed % 2))
            os.kill(writer, signal.SIGKILL)
            assert nursery.stdout.readline().strip() == str(int(signal.SIGKILL))

            hidden = {path.name for path in leftovers(tasks)}
            assert set(os.listdir(tasks)) == hidden | {f"{name}.safetensors" for name in zoo.names}
            hit += bool(hidden - before)
            written += len(zoo) - 1
            _require_whole(zoo, again)
            for name in set(zoo.names) - {again}:
                _require_whole(zoo, name)
                zoo.remove(name)
        nursery.stdin.close()
        assert '"torch": false' in nursery.stdout.read()
    assert hit >= kills / 5, "too few kills hit a write in progress to show anything"
    assert written >= kills / 8, "too few entries were written to show anything"
    assert zoo.verify() == {again: None}

    left = leftovers(tasks)
    zoo.add(large_entry("soon", 1))
    assert leftovers(tasks) == left, "files of the last hour may be of living writers"
    for path in left:
        os.utime(path, (0, path.stat().st_mtime - 3700))
    zoo.add(large_entry("later", 2))
    assert leftovers(tasks) == []
    assert sorted(zoo.verify().values(), key=str) == [None] * 3
    print(f"{kills} kills, {hit} of them during a write, {written} entries written whole")


def test_a_stopped_creation_is_finished_by_the_next_or_named(tmp_path: Path) -> None:
    zoo = ModelZoo.create(tmp_path / "zoo", None, LARGE, GROUPS)
    (zoo.path / "zoo.json").unlink()  # as if killed between the two files
    other = {**LARGE, "large": LARGE["large"] + 1}
    with pytest.raises(ValueError, match=r"theta0\.safetensors is not this zoo's θ⁰.*There is no zoo\.json beside it"):
        ModelZoo.create(zoo.path, None, other, GROUPS)
    assert not (zoo.path / "zoo.json").exists(), "it would promise what the other file does not hold"
    assert ModelZoo.create(zoo.path, None, LARGE, GROUPS).fingerprint == zoo.fingerprint
