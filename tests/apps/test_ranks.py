"""Ranks of a command: rank 0 decides, nobody is impatient, and the process that starts them needs no GPU."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lightning_mvp import ModelZoo
from lightning_mvp.apps.prune import cutting_options
from lightning_mvp.apps.runtime import trainer_options, training_of
from lightning_mvp.fitting.fit import make_trainer
from lightning_mvp.training.rounds import make_fabric

from ..nursery import Ended, Nursery
from .conftest import TINY, TINY_ROUNDS, Run
from .test_config import compose_for

TWO = ("strategy=ddp_cpu", "trainer.enable_progress_bar=false")


@pytest.mark.parametrize(
    ("asked", "seconds"), [((), 14400), (("trainer.timeout=7200",), 7200), (("trainer.strategy=auto",), 14400)]
)
def test_the_timeout_reaches_the_strategy_and_no_id(asked: tuple[str, ...], seconds: int):
    config = OmegaConf.create(compose_for("prune", "strategy=ddp_cpu", *asked))
    for made in (make_trainer(1, **trainer_options(config)), make_fabric(**cutting_options(config))):
        assert made.strategy._timeout == timedelta(seconds=seconds)
    assert "timeout" not in training_of(config, 2)


def test_a_strategy_given_as_an_object_has_its_own_timeout():
    own = DDPStrategy(timeout=timedelta(minutes=1))
    trainer = make_trainer(1, devices=2, strategy=own, timeout=14400)
    assert trainer.strategy._timeout == timedelta(minutes=1)


@pytest.mark.parametrize("timeout", ["0", "soon", "null"])
def test_what_is_no_time_is_refused(timeout: str, tmp_path: Path, run: Run):
    done = run("prune", *TINY, *TWO, f"trainer.timeout={timeout}", home=tmp_path)
    assert done.code == 1
    assert "Expected `trainer.timeout` to be an integer of at least 1, but got" in done.line


@pytest.mark.parametrize(
    ("app", "overrides"),
    [
        ("pretrain", ()),
        ("prune", TINY_ROUNDS),
        ("prune", (*TINY_ROUNDS, "cut_between_rounds=true")),
        ("prune", ("once=true",)),
        ("prune", (*TINY_ROUNDS, "trainer.precision=16-mixed")),
    ],
)
def test_what_starts_ranks_on_gpus_opens_no_cuda_context(
    app: str, overrides: tuple[str, ...], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    def context() -> NoReturn:
        raise AssertionError("a CUDA context was asked for")

    def launch(config: Any, *_: Any) -> Any:
        assert config.nproc_per_node == 2
        return lambda *words: Path(words[3], "result.json").write_text("0.5")

    for name, value in {"device_count": lambda: 2, "is_available": lambda: True, "_lazy_init": context}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("lightning_mvp.apps.ranks.elastic_launch", launch)
    weights = () if app == "pretrain" else ("weights=null",)
    done = run(app, *TINY, *overrides, *weights, "strategy=ddp", home=tmp_path)
    assert done.code == 0, done.text
    assert list(tmp_path.rglob("result.json"))


WAITED = "RankZeroError: Rank 0, for which this rank waited, has failed. OSError: the disk is full"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (WAITED, "RankFailedError: rank 0 of 2: OSError: the disk is full"),
        ("RuntimeError: a broken image", "RankFailedError: rank 1 of 2: RuntimeError: a broken image"),
        (None, "RankFailedError: rank 1 of 2: Signal 9 (SIGKILL) received by PID 7"),
    ],
)
def test_dead_ranks_end_in_one_line_with_the_cause_last(
    said: str | None, told: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "error.json"
    if said is not None:
        about = {"message": said, "extraInfo": {"py_callstack": "Traceback: in a rank", "timestamp": "1"}}
        file.write_text(json.dumps({"message": about}))
    failed = ChildFailedError("prune", {1: ProcessFailure(1, 7, -9 if said is None else 1, str(file))})

    def launch(*_: Any) -> Any:
        def start(*_: Any) -> NoReturn:
            raise failed

        return start

    monkeypatch.setattr("lightning_mvp.apps.ranks.elastic_launch", launch)
    done = run("prune", *TINY, *TINY_ROUNDS, *TWO, "weights=null", home=tmp_path)
    assert done.code == 1
    assert done.line.endswith(told)
    assert "Traceback" not in done.text
    (log,) = tmp_path.glob("logs/prune/*/prune.log")
    assert f"The rank's traceback is in {log}" in done.line
    if said is not None:
        assert "Traceback: in a rank" in log.read_text()


def two(nursery: Nursery, folder: Path, *words: str) -> Ended:
    """A command as two ranks that somebody has started, each with a home of its own."""
    return nursery.run("tests.turns_run:main", folder, "command", *words, ranks=2, limit=120)


@pytest.mark.slow
def test_rank_0_says_what_is_there_already(nursery: Nursery, tmp_path: Path):
    prune = ("prune", *TINY, *TWO, *TINY_ROUNDS, "weights=null")
    first, again = two(nursery, tmp_path, *prune), two(nursery, tmp_path, *prune)
    assert first.well, first.text[-3000:]
    assert again.well, again.text[-3000:]
    assert again.text.count("already: skipped") == 1
    zoo = tmp_path / "0" / "zoos" / "glyphs-resnet_mini"
    assert len(ModelZoo(zoo)) == 1
    assert not (tmp_path / "1" / "zoos").exists()

    vote = ("vote", *TINY, *TWO, "split.task=1", "vote.neighbours=1")
    voted = two(nursery, tmp_path, *vote)
    assert voted.well, voted.text[-3000:]
    assert len(list((tmp_path / "0" / "voted").iterdir())) == 1
    assert not (tmp_path / "1" / "voted").exists()


def test_rank_0_says_where_a_training_goes_on(nursery: Nursery, tmp_path: Path):
    pretrain = (*TINY, *TWO, "checkpoint_seconds=0")
    stopped = two(nursery, tmp_path, "pretrain", "stop=3", *pretrain)
    assert 0 not in stopped.codes
    assert None not in stopped.codes
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    done = two(nursery, tmp_path, "pretrain", *pretrain)
    assert done.well, done.text[-3000:]
    assert "Going on after step 2 of 4" in done.text
