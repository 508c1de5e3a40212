"""Sweeps: each job on its own devices and all of its data, skipped if done, listed if failed, planned on request."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.tasks.data import ImageData, load_data
from lightning_mvp.zoo.zoo import ModelZoo

from .conftest import Outcome, Run, modified
from .sweeps import (
    QUICK,
    TWO_BY_TWO,
    environment,
    folder_of,
    passes_of,
    patched,
    prune,
    require_a_folder_and_a_row_for_each_job,
    require_each_job_trained_on_all_of_its_data,
    rows_of,
    spied,
    sweep,
)

ZOO = Path("zoos", "glyphs-resnet_mini")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]  # one process makes what several tests look at


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def swept(home: Path) -> Outcome:
    """Two tasks by two numbers of devices, by Hydra's basic launcher; leftovers of a launcher in the environment."""
    os.environ.update(LOCAL_RANK="1", WORLD_SIZE="2", NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    try:
        done = sweep(home, *TWO_BY_TWO, spy=True)
    finally:
        for name in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
    assert done.code == 0, done.text
    return done


def test_each_job_trains_with_its_own_devices_in_its_own_folder_on_all_of_its_data(home: Path, swept: Outcome):
    require_each_job_trained_on_all_of_its_data(home)
    require_a_folder_and_a_row_for_each_job(home)
    assert "4 jobs: 4 done" in swept.text
    assert len(ModelZoo(home / ZOO)) == 4  # the global batch is part of an entry's id


def test_finished_entries_are_skipped_before_ranks_exist_and_keep_their_metric(home: Path, swept: Outcome, run: Run):
    before, metrics = modified(home / ZOO), [row["metric"] for row in rows_of(home)]
    done = run("prune", "-m", *QUICK, *TWO_BY_TWO, home=home)
    assert done.code == 0
    assert "4 jobs: 4 there already" in done.text
    assert [row["metric"] for row in rows_of(home)] == metrics
    assert not list(folder_of(home).glob("*/ranks-*"))
    assert modified(home / ZOO) == before


def test_another_training_is_another_entry(home: Path, swept: Outcome, run: Run):
    options = ("split.task=0", "optim.learning_rate=0.05,0.02", "+trainer.limit_train_batches=1.0,2", "dry_run=true")
    assert run("prune", "-m", *QUICK, *options, home=home).code == 0
    assert [row["state"] for row in rows_of(home)] == ["planned"] * 4
    # Nor is the same global batch on two devices: batch norm sees halves of it.
    assert run("prune", "-m", *QUICK, *TWO_BY_TWO, "data.batch_size=4", "dry_run=true", home=home).code == 0
    assert [row["state"] for row in rows_of(home)] == ["planned"] * 4
    where = ("trainer.log_every_n_steps=3", "trainer.limit_val_batches=0.5", "threads=2")  # no matter
    assert run("prune", "-m", *QUICK, "split.task=0", *where, home=home).code == 0
    assert [row["state"] for row in rows_of(home)] == ["there already"]


def test_a_folder_that_is_used_again_reports_this_sweep_alone(home: Path, swept: Outcome, run: Run):
    folder = f"hydra.sweep.dir={home}/again"
    assert run("prune", "-m", *QUICK, "split.task=77,78", folder, home=home).code == 1
    done = run("prune", "-m", *QUICK, "split.task=0", folder, home=home)
    assert done.code == 0
    assert "1 job: 1 there already" in done.line


def test_joblib_runs_the_same_sweep_with_two_workers(tmp_path: Path):
    done = sweep(tmp_path, "launcher=joblib", *TWO_BY_TWO, spy=True)
    assert done.code == 0, done.text
    require_each_job_trained_on_all_of_its_data(tmp_path)
    require_a_folder_and_a_row_for_each_job(tmp_path)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["submitit"], id="submitit", marks=pytest.mark.slow),
        # Starting Ray takes minutes on two cores.
        pytest.param(["ray", "+hydra.launcher.ray.init.num_cpus=2"], id="ray", marks=pytest.mark.full),
    ],
)
def test_submitit_and_ray_run_the_same_sweep(launcher: list[str], tmp_path: Path):
    pytest.importorskip("ray" if launcher[0] == "ray" else "submitit")
    done = sweep(tmp_path, f"launcher={launcher[0]}", *launcher[1:], *TWO_BY_TWO, spy=True)
    assert done.code == 0, done.text
    require_each_job_trained_on_all_of_its_data(tmp_path)
    require_a_folder_and_a_row_for_each_job(tmp_path)


@pytest.mark.slow
def test_a_sweeper_optimises_the_validation_accuracy(tmp_path: Path):
    pytest.importorskip("optuna")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    space = ("hydra.sweeper.direction=maximize", "optim.learning_rate=interval(0.01,0.2)")
    done = sweep(tmp_path, *search, *space)
    assert done.code == 0, done.text
    metrics = [float(row["metric"]) for row in rows_of(tmp_path)]
    assert len(metrics) == 3
    assert f"Best value: {max(metrics)}" in done.text
    zoo = ModelZoo(tmp_path / ZOO)
    assert sorted(entry.info["val_accuracy"] for entry in zoo.entries(None)) == sorted(metrics)


def test_jobs_that_fail_are_listed_with_log_and_command_and_the_others_are_run(tmp_path: Path, run: Run):
    done = run("prune", "-m", *QUICK, "split.task=0,77,1", "trainer.devices=1,none", home=tmp_path)
    assert done.code == 1
    states = [row["state"] for row in rows_of(tmp_path)]
    assert states == ["done", "failed", "failed", "failed", "done", "failed"], "also where no Trainer can be made"
    row = rows_of(tmp_path)[2]
    assert "Expected argument `index` to be in [0, 3) for source tasks, but got 77" in row["error"]
    assert f"log: {row['log']}" in done.text
    assert "Traceback" in Path(row["log"]).read_text()
    assert "Traceback" not in done.text
    again = [line for line in done.text.splitlines() if "again: mvp-prune" in line]
    assert ["split.task=77" in line for line in again] == [False, True, True, False]
    assert len(ModelZoo(tmp_path / ZOO)) == 2


def test_a_rank_that_fails_ends_its_job_and_not_the_sweep(tmp_path: Path):
    """The second rank can't read a batch: the others of its job end with it, the next job is run."""
    broken = patched(
        tmp_path / "code",
        "from lightning_mvp.tasks.loader import TaskLoader\n"
        "draw = TaskLoader._draw\n"
        "def fail(self, epoch):\n"
        "    if self.rank == 1: raise RuntimeError('a broken image')\n"
        "    return draw(self, epoch)\n"
        "TaskLoader._draw = fail\n",
    )
    overrides = ("split.task=0", "trainer.devices=2,1", "strategy=ddp_cpu")
    done = prune(tmp_path, "-m", *QUICK, *overrides, **broken)
    assert done.code == 1
    first, second = rows_of(tmp_path)
    assert [(row["devices"], row["state"]) for row in (first, second)] == [("2", "failed"), ("1", "done")]
    assert first["error"] == "RankFailedError: rank 1 of 2: RuntimeError: a broken image"
    assert "in fail" in Path(first["log"]).read_text(), "the log says where"


def test_a_dry_run_plans_and_does_nothing(home: Path, swept: Outcome, run: Run):
    before = modified(home / ZOO)
    options = ("split.task=0,2", *TWO_BY_TWO[1:], "dry_run=true")
    done = run("prune", "-m", *QUICK, *options, home=home)
    assert done.code == 0
    rows = rows_of(home)
    assert [(row["state"], row["devices"]) for row in rows] == [
        ("there already", "1"),
        ("there already", "2"),
        ("planned", "1"),
        ("planned", "2"),
    ]
    assert all(float(row["estimate"]) > 0 for row in rows[2:])
    assert "2 planned, 2 there already" in done.line
    assert "one after the other, as measured here" in done.line
    assert modified(home / ZOO) == before
    alone = run("prune", *QUICK, "split.task=2", *TWO_BY_TWO[2:], "dry_run=true", home=home)
    assert "would run mvp-prune in 2 processes; training takes about" in alone.line
    assert modified(home / ZOO) == before


def test_data_is_loaded_once_for_all_jobs_of_a_process(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    loaded = []

    def counted(*args: Any, **options: Any) -> ImageData:
        loaded.append(options)
        return load_data(*args, **options)

    monkeypatch.setattr("lightning_mvp.tasks.data.load_data", counted)
    options = ("data.seed=77", "split.task=0,1,2")  # a seed that no test before has loaded
    assert run("prune", "-m", *QUICK, *options, "dry_run=true", home=tmp_path).code == 0
    assert len(rows_of(tmp_path)) == 3
    assert not loaded, "a plan needs no images"
    assert run("prune", "-m", *QUICK, *options, home=tmp_path).code == 0
    assert len(loaded) == 1


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def within(seconds: float, reached: Callable[[], bool]) -> bool:
    """Whether it is reached in that time."""
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.1)
    return reached()


@pytest.mark.slow
def test_ranks_of_a_sweep_that_is_killed_end_with_it(tmp_path: Path):
    more = spied(tmp_path)
    overrides = (*QUICK, "split.task=0,1", "trainer.devices=2", "strategy=ddp_cpu", "steps=100000")
    with (tmp_path / "output.txt").open("w") as output:
        command = [sys.executable, "-m", "lightning_mvp.apps.prune", "-m", *overrides]
        job = subprocess.Popen(command, env=environment(tmp_path, **more), stdout=output, stderr=output)
    assert within(120, lambda: len(passes_of(tmp_path)) >= 2), (tmp_path / "output.txt").read_text()
    ranks = {one["process"] for one in passes_of(tmp_path)}
    assert len(ranks) == 2
    assert job.pid not in ranks
    job.kill()
    job.wait()
    assert within(20, lambda: not any(map(is_alive, ranks)))
    assert not (tmp_path / ZOO / "tasks").exists() or not len(ModelZoo(tmp_path / ZOO))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def slurm(rank: int, port: int) -> dict[str, str]:
    """What ``srun`` tells one of two tasks."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "prune",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


@pytest.mark.slow
def test_ranks_that_slurm_has_started_get_one_decision(tmp_path: Path):
    overrides = (*QUICK, "split.task=0", "trainer.devices=2", "strategy=ddp_cpu", f"hydra.run.dir={tmp_path}/run")
    texts = []
    for _ in range(2):
        port = free_port()
        command = [sys.executable, "-m", "lightning_mvp.apps.prune", *overrides]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks = [
            subprocess.Popen(command, env=environment(tmp_path, **slurm(rank, port)), **options) for rank in (0, 1)
        ]
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], outputs
        texts.append("".join(outputs))
        assert json.loads((tmp_path / "run" / "job.json").read_text())["devices"] == 2
        assert not list((tmp_path / "run").glob("ranks-*")), "nobody starts ranks that are there"
    assert texts[0].count("wrote ") == 1
    assert texts[1].count("already: skipped") == 1
    assert len(ModelZoo(tmp_path / ZOO)) == 1


def test_a_sweep_under_torchrun_is_refused(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    done = run("prune", "-m", *QUICK, "split.task=0,1", home=tmp_path)
    assert done.code == 1
    assert "Expected a sweep to be started as one process, but got torchrun" in done.line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.strategy=ddp_spawn"], "Expected a strategy whose ranks are commands of their own"),
        (["trainer.strategy=ddp", "+trainer.num_nodes=2"], "Expected ranks on 2 nodes to be started by a launcher"),
    ],
)
def test_ranks_that_cannot_be_started_here_are_refused(overrides: list[str], words: str, tmp_path: Path, run: Run):
    done = run("prune", *QUICK, "trainer.devices=2", *overrides, home=tmp_path)
    assert done.code == 1
    assert words in done.line
    assert "Traceback" not in done.text
