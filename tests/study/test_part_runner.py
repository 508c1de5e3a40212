"""What makes the methods of a comparison comparable, and what a part does that was stopped half-way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import passes
from lightning_mvp.study import check_study, starting_points, study_context
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.records import read_record, record_path
from lightning_mvp.study.starting_points import StartingPoints
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting import target

from .small_study import images_of, in_memory, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartRunner:
    """A study with its pre-training and two sources done."""
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    runner = PartRunner(tmp_path, settings(methods=("mvp", "dense")))
    for part in ("pretrain", "source-000", "source-001", "rank--target-000"):
        runner.run(part)
    return runner


def test_all_methods_re_estimate_batch_norm_on_the_same_batches(
    runner: PartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []

    def note(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
        seen.append(list(batches))

    monkeypatch.setattr(passes, "reestimate_batch_norm", note)
    monkeypatch.setattr(starting_points, "reestimate_batch_norm", note)
    monkeypatch.setattr(target, "REESTIMATION_BATCH", 20)  # of 30 images
    data = runner.datamodule(runner.split.get("target", 0))
    for method in ("mvp", "dense", "taylor", "oneshot_magnitude"):
        StartingPoints(runner, runner.settings, data).make(method)
    assert len(seen) == 4
    for batches in seen:
        assert [len(batch) for batch in batches] == [15, 15]
        assert all(torch.equal(batch, first) for batch, first in zip(batches, seen[0], strict=True))


def test_one_shot_taylor_is_scored_with_the_targets_batch_norm_statistics(
    runner: PartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[dict[str, Tensor]] = []
    score = starting_points.taylor_importance

    def note(backbone: nn.Module, *others: Any) -> Any:
        scored.append({name: tensor.clone() for name, tensor in backbone.state_dict().items()})
        return score(backbone, *others)

    monkeypatch.setattr(starting_points, "taylor_importance", note)
    data = runner.datamodule(runner.split.get("target", 0))
    make = StartingPoints(runner, runner.settings, data).make
    make("oneshot_taylor")
    dense = make("dense").backbone.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in scored[0].items())


def test_an_entry_without_a_record_is_pruned_again_for_its_seconds_and_widths(runner: PartRunner) -> None:
    before = read_record(runner.folder, "source-001")
    record_path(runner.folder, "source-001").unlink()
    runner.run("source-001")
    after = read_record(runner.folder, "source-001")
    assert before is not None
    assert after is not None
    assert {**before, "seconds": 0} == {**after, "seconds": 0}
    assert after["seconds"] > 0.2 * before["seconds"]


@pytest.mark.parametrize(("own", "expected"), [(None, 0.08), (0.3, 0.3)])
def test_pre_training_follows_the_optimizers_rate_unless_it_has_its_own(
    own: float | None, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    rates: list[float] = []
    monkeypatch.setattr(TaskModule, "accuracy_on", lambda module, *_: rates.append(module.hparams.learning_rate) or 0.5)
    pretrain = {"steps": 1, "batch_size": 16, "learning_rate": own, "augment": "none"}
    PartRunner(tmp_path, settings(pretrain=pretrain)).run("pretrain")
    assert rates == [expected]


def test_pre_training_stopped_between_weights_and_record_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    runner = PartRunner(tmp_path, settings())
    runner.theta0_path.write_bytes(b"of another life")
    runner.run("pretrain")
    assert sum(parameter.numel() for parameter in runner.theta0.build().parameters()) > 0
    assert read_record(tmp_path, "pretrain") is not None


def test_random_scores_follow_the_studys_seed(tmp_path: Path) -> None:
    assert PartRunner(tmp_path, replace(settings(), seed=7)).pruner().settings.seed == 7


def test_fewer_sources_than_neighbours_are_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(check_study, "load_data", lambda **_: data)
    with pytest.warns(UserWarning, match="`vote.neighbours`=9 source tasks to vote, but `split.sources` is 3: all"):
        check_study.refuse_bad_settings(settings(vote={"neighbours": 9}))


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"vote.temperature": -1.0}, "`temperature` to be above 0"),
        ({"vote.ballots": "secret"}, "`vote.ballots` to be one of"),
        ({"method": "taylor@1"}, "steps"),
        ({"method": "generic_parent"}, "`parent` to be given for the method generic_parent"),
    ],
)
def test_a_trial_that_cannot_work_is_refused_before_any_work(trial: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_study.refuse_bad_settings(settings(trials={"bad": trial}))
