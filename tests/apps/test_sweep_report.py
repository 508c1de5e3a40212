"""What a sweep says at its end, from the records that its jobs left."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

from lightning_mvp.apps.hydra_internals import sweep_size
from lightning_mvp.apps.sweep import SHOWN, sentences, sweep_table
from lightning_mvp.apps.sweep_plot import draw_sweep
from lightning_mvp.apps.sweep_progress import Progress, jobs_at_once
from lightning_mvp.apps.sweep_records import own_overrides, read_records, write_csv


def record(job: int, state: str = "done", **more: Any) -> dict[str, Any]:
    shared = {"overrides": ["steps=4", f"split.task={job}"], "log": f"logs/{job}/prune.log", "seconds": 2.0}
    return {"job": job, "state": state, "metric": 0.5, "devices": 1, **shared, **more}


def text_of(records: list[dict[str, Any]]) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(sweep_table(records))
    return screen.getvalue()


def leave(folder: Path, *records: dict[str, Any]) -> None:
    for each in records:
        (folder / str(each["job"])).mkdir(parents=True)
        (folder / str(each["job"]) / "job.json").write_text(json.dumps(each))


def test_records_come_by_number_and_a_killed_job_is_not_running_any_more(tmp_path: Path):
    leave(tmp_path, record(10), record(2, "running"), record(1))
    assert [(each["job"], each["state"]) for each in read_records(tmp_path)] == [
        (1, "done"),
        (2, "stopped"),
        (10, "done"),
    ]


def test_the_table_shows_what_differs_and_failures_first_where_there_are_too_many():
    jobs = [record(job) for job in range(SHOWN)]
    assert "steps=4" not in text_of(jobs)
    assert f"split.task={SHOWN - 1} " in text_of(jobs)
    jobs.append(record(SHOWN, "failed", metric=None, error="ValueError: no"))
    shown = [line for line in text_of(jobs).splitlines() if "split.task" in line]
    assert len(shown) == SHOWN
    assert "failed" in shown[0]
    assert f"{SHOWN} of them are shown, jobs.csv has all" in sentences("prune", jobs)


def test_failures_are_told_with_error_log_and_a_command_that_a_shell_understands():
    failed = record(3, "failed", error="ValueError: no", overrides=["split.classes=[a b, c]"])
    lines = sentences("prune", [record(0), failed, record(4, "stopped")])
    assert lines[0] == "3 jobs: 1 done, 1 failed, 1 stopped"
    assert "job 3 failed: ValueError: no" in lines
    assert "  log: logs/3/prune.log" in lines
    again = next(line for line in lines if "again: " in line)
    assert shlex.split(again)[1:] == ["mvp-prune", "split.classes=[a b, c]"]
    assert lines[-1].startswith("1 did not end; the same command goes on from there: mvp-prune")


def test_the_csv_has_every_job_and_column(tmp_path: Path):
    write_csv(tmp_path / "jobs.csv", [record(0), record(1, "failed", metric=None, error="a, b\nc", what="unused")])
    with (tmp_path / "jobs.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["state"], first["metric"], first["overrides"]) == ("done", "0.5", "steps=4 split.task=0")
    assert (second["error"], second["metric"], second["estimate"]) == ("a, b\nc", "", "")


def test_the_csv_has_a_column_for_each_swept_key_and_number(tmp_path: Path):
    made = {
        "entry": "pets--1",
        "output": "zoo",
        "val_accuracy": 0.5,
        "test_accuracy": 0.25,
        "parameters": 9,
        "macs": 99,
    }
    swept = ["steps=4", "split.task=1", "+growth.vote={temperature: 0.1}", "output=x"]
    write_csv(tmp_path / "jobs.csv", [record(0), record(1, **made, overrides=swept)])
    with (tmp_path / "jobs.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["split.task"], first["growth.vote"], second["split.task"]) == ("0", "", "1")
    assert second["growth.vote"] == "{temperature: 0.1}"
    assert {name: second[name] for name in made} == {name: str(value) for name, value in made.items()}
    assert list(first).count("output") == 1
    assert "steps" not in first, "the same for all"


def test_the_picture_shows_what_was_swept_and_is_none_where_nothing_was(tmp_path: Path):
    picture = tmp_path / "jobs.png"
    assert not draw_sweep(picture, [record(0, val_accuracy=0.5), record(1, "failed")])
    assert not picture.exists()
    jobs = [
        record(job, val_accuracy=0.1 * job, overrides=[f"split.task={job % 2}", f"optim={name}", f"optim.rate={rate}"])
        for job, (name, rate) in enumerate([("sgd", 0.1), ("adamw", 0.001), ("sgd", 0.01), ("adamw", 1e-4)])
    ]
    assert draw_sweep(picture, jobs)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_job_alone_keeps_its_overrides():
    assert own_overrides([{"overrides": ["steps=4"]}]) == [["steps=4"]]


def test_progress_is_one_line_when_more_jobs_have_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    leave(tmp_path, record(0, "there already"), record(1, "running"))
    progress = Progress(tmp_path, {}, jobs=3)
    progress.look()
    assert capsys.readouterr().out == "", "not more often than once a second"
    progress._told -= 1
    leave(tmp_path, record(2))
    progress.look()
    progress.look()
    line = capsys.readouterr().out
    assert line.startswith("sweep: 2 of 3 jobs ended (1 there already), about ")
    assert line.count("\n") == 1
    (tmp_path / "1" / "job.json").write_text(json.dumps(record(1, "failed")))
    progress.look()
    assert capsys.readouterr().out == "sweep: 3 of 3 jobs ended (1 failed, 1 there already)\n", "the last comes at once"


def test_what_was_there_before_the_sweep_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    leave(tmp_path, record(0), record(1))
    old = tmp_path / "0" / "job.json"
    progress = Progress(tmp_path, {old: old.stat().st_mtime_ns}, jobs=1)
    progress.watch()
    progress._over.wait(1.5)
    progress.end()
    assert capsys.readouterr().out == "sweep: 1 of 1 job ended\n"


def test_an_estimate_counts_the_jobs_that_run_at_once():
    jobs = [record(job, "planned", estimate=100.0) for job in range(6)]
    assert "about 10 min one after the other, as measured here" in sentences("prune", jobs)
    assert "about 3 min with 4 jobs at once (10 min one after the other), as measured here" in sentences(
        "prune", jobs, 4
    )


@pytest.mark.parametrize(
    ("launcher", "options", "expected"),
    [
        ("basic", {}, 1),
        ("joblib", {"n_jobs": 3}, 3),
        ("joblib", {"n_jobs": -1}, 6),
        ("submitit_local", {}, 8),
        ("submitit_slurm", {"array_parallelism": 5}, 5),
        ("ray", {"ray": {"init": {"num_cpus": 4}, "remote": {"num_cpus": 2}}}, 2),
    ],
)
def test_each_launcher_says_how_many_run_at_once(
    launcher: str, options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_mvp.apps.sweep_progress.cores", lambda: 6)
    assert jobs_at_once(launcher, options, 8) == expected


def test_hydra_tells_how_many_jobs_a_sweep_has():
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        hydra = compose("prune", return_hydra_config=True).hydra
    own = {"overrides": {"task": ["split.task=range(0,3)", "steps=4", "optim=default,adamw"]}}
    sweeper = {"_target_": hydra.sweeper._target_, "params": {"seed": "0,1"}}
    assert sweep_size(OmegaConf.create({"sweeper": sweeper, **own})) == 12
    assert sweep_size(OmegaConf.create({"sweeper": hydra.sweeper, **own})) == 6, "without params"
    assert sweep_size(OmegaConf.create({"sweeper": {"_target_": "other.Sweeper", "n_trials": 7}})) == 7
