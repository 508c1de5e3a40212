"""`mvp-pretrain` goes on where it was stopped, however that was, and ends like a training that nobody stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_mvp.training.task import TaskModule

from ..nursery import Nursery, run_command
from .conftest import TINY, Run

# 12 steps an epoch; what is dropped depends on torch's random state.
LONGER = (*TINY, "steps=15", "+backbone.recipe.arguments.drop_path_rate=0.3", "trainer.enable_progress_bar=false")
PARENT = ("pruning.pruning_ratio=0.5", "pruning.rounds=3", "pruning.steps_per_round=3", "mimic=2")
KINDS: dict[str, tuple[str, ...]] = {"theta0": (), "parent": PARENT}


@pytest.fixture(autouse=True)
def ctrl_c_is_pythons() -> Iterator[None]:
    """A job that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", params=["theta0", pytest.param("parent", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(kind: str, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training that nobody stopped."""
    home = tmp_path_factory.mktemp("whole")
    done = nursery.run("tests.nursery:run_command", "pretrain", *command(home, kind), LIGHTNING_MVP_HOME=str(home))
    assert done.well, done.text
    return home / "made.safetensors"


def command(home: Path, kind: str) -> tuple[str, ...]:
    return (*LONGER, *KINDS[kind], f"output={home}/made.safetensors")


def require_the_same(found: Path, whole: Path) -> None:
    ours, theirs = load_file(found), load_file(whole)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for path in (found, whole):
        recipes = {path.with_suffix(".json").name} if path.with_suffix(".json").exists() else set()
        assert {each.name for each in path.parent.iterdir() if each.name != "logs"} == {path.name, *recipes}
    if found.with_suffix(".json").exists():
        assert found.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_same_command_goes_on_after_a_signal(
    how: signal.Signals, code: int, kind: str, whole: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, steps = TaskModule.training_step, []

    def stopped(module: TaskModule, batch: Any, batch_idx: int) -> Any:
        steps.append(module.trainer.global_step)
        if len(steps) == 8:
            os.kill(os.getpid(), how)
        return learn(module, batch, batch_idx)

    monkeypatch.setattr(TaskModule, "training_step", stopped)
    done = run("pretrain", *command(tmp_path, kind), home=tmp_path)
    assert done.code == code, done.text
    assert "Stopped. What is written stays; the same command goes on from there." in done.line
    assert "Traceback" not in done.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is Python's again"
    assert not (tmp_path / "made.safetensors").exists()
    again = run("pretrain", *command(tmp_path, kind), home=tmp_path)
    assert again.code == 0, again.text
    assert steps == list(range(15)), "no step was lost or done twice"
    require_the_same(tmp_path / "made.safetensors", whole)


def die_at(moment: str, *arguments: str) -> None:
    """Run the command in a process that dies as by ``kill -9``: after a checkpoint, in the midst of one, at the end."""
    from lightning_mvp.apps import pretrain
    from lightning_mvp.backbones import weights
    from lightning_mvp.callbacks import resumable

    replace, saved = os.replace, []

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(source: Any, target: Any) -> None:
        if Path(target).name == resumable.NAME:
            saved.append(target)
            if moment == f"half {len(saved)}":
                die()
        replace(source, target)
        if moment == f"saved {len(saved)}" and Path(target).name == resumable.NAME:
            die()

    resumable.os.replace = counted  # type: ignore[assignment]
    if moment == "weights":  # with the recipe written
        weights.save_weights = die  # type: ignore[assignment]
    if moment == "clean":
        pretrain.shutil.rmtree = die  # type: ignore[assignment]
    run_command("pretrain", *arguments)


@pytest.mark.slow
def test_the_same_command_goes_on_after_kills(kind: str, whole: Path, nursery: Nursery, tmp_path: Path) -> None:
    words = (*command(tmp_path, kind), "checkpoint_seconds=0")
    told = []
    for moment in ("half 1", "saved 5", "half 4", "saved 4", "weights", "clean"):
        done = nursery.run("tests.apps.test_pretrain:die_at", moment, *words, LIGHTNING_MVP_HOME=str(tmp_path))
        assert done.codes == [-signal.SIGKILL], done.text
        told.append([line for line in done.text.splitlines() if line.startswith("Going on after step")])
    assert told == [
        [],
        [],
        ["Going on after step 5 of 15."],
        ["Going on after step 8 of 15."],
        ["Going on after step 12 of 15."],
        [],
    ]
    done = nursery.run("tests.nursery:run_command", "pretrain", *words, LIGHTNING_MVP_HOME=str(tmp_path))
    assert "made.safetensors exists already and is not overwritten" in done.line, "it was done"
    require_the_same(tmp_path / "made.safetensors", whole)


def test_a_stopped_training_of_other_settings_is_refused(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / ".made.safetensors.training"
    folder.mkdir()
    assert run("pretrain", *command(tmp_path, "theta0"), "dry_run=true", home=tmp_path).code == 0
    (folder / "settings.json").write_text(json.dumps({"optim": {"learning_rate": 0.1}, "steps": 15}))
    done = run("pretrain", *command(tmp_path, "theta0"), home=tmp_path)
    assert done.code == 1
    assert f"the training that was stopped and can go on in {folder}, but got " in done.line
    assert "optim.learning_rate=0.2, there 0.1" in done.line
    assert f"name another output, or remove {folder} to start anew." in done.line
    assert not (tmp_path / "made.safetensors").exists()


def test_only_a_parent_can_mimic(tmp_path: Path, run: Run) -> None:
    done = run("pretrain", *command(tmp_path, "theta0"), "mimic=2", home=tmp_path)
    assert done.code == 1
    assert "Expected `mimic` to be 0 for a backbone that is not pruned, but got 2" in done.line
    assert not (tmp_path / "made.safetensors").exists()
