"""Sweeps of ``mvp-prune`` in a process of their own, as a terminal runs them, and what they left."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import TINY, TINY_ROUNDS, Outcome

# As sitecustomize.py it makes every process write which images its training loader hands out, into $SPY: a line for
# each pass over one rank's share. (A file of that name among the tests would be imported, by pytest's doctests.)
SPY = r"""
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
"""
QUICK = (*TINY, *TINY_ROUNDS, "weights=null", "trainer.enable_progress_bar=false")
TWO_BY_TWO = ("split.task=0,1", "trainer.devices=1,2", "strategy=ddp_cpu")
IMAGES = 36  # of a TINY task: 3 classes of 12


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "LIGHTNING_MVP_HOME": str(home), "COLUMNS": "160", "OMP_NUM_THREADS": "1", **more}


def prune(home: Path, *overrides: str, command: tuple[str, ...] = (), **more: str) -> Outcome:
    """``mvp-prune`` with these overrides; its exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, *command, "-m", "lightning_mvp.apps.prune", *overrides],
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return Outcome(done.returncode, done.stdout)


def patched(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python process runs this code first."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


def spied(home: Path) -> dict[str, str]:
    """The environment in which :func:`passes_of` knows what loaders hand out."""
    (home / "spy").mkdir(parents=True)
    return {"SPY": str(home / "spy"), **patched(home / "code", SPY)}


def sweep(home: Path, *overrides: str, spy: bool = False) -> Outcome:
    """A multirun of tiny jobs."""
    more = spied(home) if spy else {}
    return prune(home, "-m", *QUICK, *overrides, **more)


def folder_of(home: Path) -> Path:
    """Where the last sweep wrote."""
    return max((path.parent for path in (home / "logs" / "prune").glob("*/jobs.csv")), key=lambda path: path.name)


def rows_of(home: Path) -> list[dict[str, str]]:
    """The CSV of the last sweep."""
    with (folder_of(home) / "jobs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def passes_of(home: Path) -> list[dict[str, Any]]:
    """What the spied loaders handed out."""
    return [json.loads(line) for path in (home / "spy").iterdir() for line in path.read_text().splitlines()]


def require_each_job_trained_on_all_of_its_data(home: Path) -> None:
    """Two tasks, each with one device and with two: 8 images a rank and step for four steps."""
    passes = passes_of(home)
    for task in ("source-000", "source-001"):
        for world_size in (1, 2):
            job = [one for one in passes if (one["task"], one["world_size"]) == (task, world_size)]
            assert {one["rank"] for one in job} == set(range(world_size)), (task, world_size)
            assert len({one["process"] for one in job}) == world_size
            first = [image for one in job if one["epoch"] == 0 for image in one["images"]]
            assert sorted(first) == list(range(IMAGES)), (task, world_size)


def require_a_folder_and_a_row_for_each_job(home: Path) -> None:
    rows = rows_of(home)
    assert [(row["job"], row["state"], row["devices"]) for row in rows] == [
        ("0", "done", "1"),
        ("1", "done", "2"),
        ("2", "done", "1"),
        ("3", "done", "2"),
    ]
    for row in rows:
        assert 0 <= float(row["metric"]) <= 1
        assert float(row["seconds"]) > 0
        log = Path(row["log"])
        assert log.exists()
        record = json.loads((log.parent / "job.json").read_text())
        assert (log.parent.name, record["state"]) == (row["job"], "done")
        # Rank 0 of a job with two devices was another process, and got that job's configuration alone.
        assert bool(list(log.parent.glob("ranks-*"))) == (row["devices"] == "2")
