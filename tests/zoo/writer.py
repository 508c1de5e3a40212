"""Processes that write to a zoo, for tests that kill them or let many run at once. Imports neither torch nor pytest.

``python -m tests.zoo.writer ZOO NUMBER COUNT`` adds COUNT entries of its own and races for some that all writers want.
``python -m tests.zoo.writer ZOO nursery`` forks a writer for each line (a seed) it reads, tells its process id, and
waits until somebody kills it. ``python -m tests.zoo.writer ZOO read FILE`` reads all entries until there is that file.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_mvp.zoo import ModelZoo, ZooEntry

from .entries import GROUPS, THETA0, make_entry

SHARED = [f"shared-{number}" for number in range(10)]
# Half a megabyte, so that a writer is hit while it writes rather than between.
LARGE = {**THETA0, "large": np.zeros((512, 256), np.float32)}


def large_entry(task: str, seed: int) -> ZooEntry:
    """An entry for a zoo of LARGE, all of its large tensor filled by the seed."""
    entry = make_entry(task, seed=seed)
    large = np.full(LARGE["large"].shape, seed, np.float32)
    return replace(entry, weights={**entry.weights, "large": large}, info={"seed": seed})


def fill(path: str, number: int, count: int) -> dict[str, list[str]]:
    """Add entries, and say which of the shared ones this writer got."""
    zoo = ModelZoo.create(path, {"model": "mini"}, THETA0, GROUPS)
    won = []
    for i in range(count):
        zoo.add(replace(make_entry(f"own-{number}-{i}", seed=i), info={"writer": number}))
        if i % 5 == 0:
            shared = SHARED[i // 5 % len(SHARED)]
            try:
                zoo.add(replace(make_entry(shared, seed=number), info={"writer": number}))
                won.append(shared)
            except FileExistsError:
                pass
    return {"won": won}


def write_for_ever(path: str, seed: int) -> None:
    """New entries and, between them, the same one again and again; every third writer knows no hard links."""
    if seed % 3 == 0:
        os.link = _no_links
    zoo = ModelZoo(path)
    for i in range(10_000):
        zoo.add(large_entry(f"new-{seed}-{i}", seed))
        zoo.add(large_entry("again", seed), overwrite=True)


def _no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def nursery(path: str, seeds: Iterator[str]) -> None:
    for line in seeds:
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(path, int(line))
            finally:
                os._exit(1)  # it was to be killed
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else f"ended by itself: {status}", flush=True)


def read_until(path: str, stop: Path) -> dict[str, object]:
    """Read all entries again and again until there is the file `stop`; what was wrong with any is told."""
    zoo, reads, problems = None, 0, {}
    while not stop.exists():
        if zoo is None:
            try:
                zoo = ModelZoo(path)
            except FileNotFoundError:
                time.sleep(0.01)
                continue
        found = zoo.verify()
        reads += len(found)
        problems |= {name: problem for name, problem in found.items() if problem is not None}
    return {"reads": reads, "problems": problems}


if __name__ == "__main__":
    command = sys.argv[2]
    if command == "nursery":
        nursery(sys.argv[1], iter(sys.stdin))
        result: dict = {}
    elif command == "read":
        result = read_until(sys.argv[1], Path(sys.argv[3]))
    else:
        result = fill(sys.argv[1], int(command), int(sys.argv[3]))
    print(json.dumps({**result, "torch": "torch" in sys.modules}))
