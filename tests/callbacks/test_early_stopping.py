"""PrunedEarlyStopping: patience starts after pruning."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_mvp import ModelZoo, PrunedEarlyStopping

from .test_checkpoint import BEST_IS_UNPRUNED, Measured, SaveAt, fit
from .user import FACTS, callback

FALLING = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def stopped_at(stop: PrunedEarlyStopping, values: tuple[float, ...], **options: Any) -> int:
    """Validations after steps 2, 4, ... 12; the last round after step 6."""
    options = {"enable_checkpointing": False, **options}  # else several processes write into one folder
    return fit(callback(head="classifier"), stop, module=Measured(values), **options).global_step


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ((0.1, 0.2, 0.3, 0.5, 0.6, 0.7), 10),  # the first pruned value is the best of those that count
        (BEST_IS_UNPRUNED, 12),
        ((0.1, 0.1, 0.9, 0.8, 0.8, 0.8), 12),
    ],
)
def test_patience_and_best_score_begin_with_the_first_pruned_value(values: tuple[float, ...], step: int):
    stop = PrunedEarlyStopping("val_loss", patience=2)
    assert stopped_at(stop, values) == step
    assert stop.best_score == torch.tensor(min(values[2:]))


@pytest.mark.parametrize(
    ("options", "values", "reason"),
    [
        ({"stopping_threshold": 0.2}, (0.1, 0.1, 0.5, 0.1, 0.1, 0.1), EarlyStoppingReason.STOPPING_THRESHOLD),
        ({"divergence_threshold": 2.0}, (9.0, 9.0, 0.5, 9.0, 0.5, 0.5), EarlyStoppingReason.DIVERGENCE_THRESHOLD),
        ({}, (torch.nan, torch.inf, 0.5, torch.nan, 0.5, 0.5), EarlyStoppingReason.NON_FINITE_METRIC),
    ],
    ids=["threshold", "divergence", "not finite"],
)
def test_neither_thresholds_nor_nan_stop_before_the_last_round(options: Any, values: Any, reason: EarlyStoppingReason):
    stop = PrunedEarlyStopping("val_loss", **options)
    assert stopped_at(stop, values) == 8
    assert stop.stopping_reason == reason


def test_a_run_that_it_ends_adds_its_entry_to_the_zoo(tmp_path: Path):
    mvp = callback(head="classifier", task=FACTS, zoo=tmp_path / "zoo")
    trainer = fit(mvp, PrunedEarlyStopping("val_loss", patience=1), module=Measured(tuple(reversed(FALLING))))
    assert trainer.global_step == 8
    assert len(ModelZoo(tmp_path / "zoo")) == 1


def test_a_value_left_over_from_before_the_last_round_is_no_check():
    # Validations after steps 4, 8, 12, checks at the end of every epoch: at step 6 the value is that of step 4.
    stop = PrunedEarlyStopping("val_loss", patience=1, check_on_train_epoch_end=True, strict=False)
    stopped_at(stop, (0.1, 0.5, 0.4), check_val_every_n_epoch=2, max_steps=8)
    assert (stop.wait_count, float(stop.best_score)) == (0, 0.5)


def test_an_average_over_the_epoch_of_the_last_round_is_no_check():
    stop = PrunedEarlyStopping("each_epoch", mode="max")
    stopped_at(stop, FALLING, batches=4, max_steps=8)
    assert stop.best_score == -torch.inf
    stopped_at(stop, FALLING, batches=4)
    assert stop.best_score == 9.5


def test_checks_within_an_epoch_begin_after_the_last_round():
    stop = PrunedEarlyStopping("val_loss", patience=1, check_on_train_epoch_end=False)
    assert stopped_at(stop, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), val_check_interval=3, batches=12) == 9


@pytest.mark.parametrize("stop_at", [5, 7, 9])
def test_a_resumed_run_goes_on_with_score_and_patience(tmp_path: Path, stop_at: int):
    class ByStep(Measured):
        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", (0.1, 0.2, 0.3, 0.5, 0.6, 0.7)[self.trainer.global_step // 2 - 1])

    def run(*callbacks: L.Callback, **options: Any) -> tuple[int, float, int]:
        stop = PrunedEarlyStopping("val_loss", patience=2)
        trainer = fit(callback(head="classifier"), stop, *callbacks, module=ByStep(), **options)
        return trainer.global_step, float(stop.best_score), stop.wait_count

    whole = run(SaveAt(stop_at, tmp_path / "some.ckpt"))
    assert whole == (10, pytest.approx(0.3), 2)
    assert run(ckpt_path=tmp_path / "some.ckpt") == whole


def test_a_second_fit_starts_anew():
    stop = PrunedEarlyStopping("val_loss", patience=2)
    assert stopped_at(stop, (0.1, 0.2, 0.3, 0.5, 0.6, 0.7)) == 10
    assert stopped_at(stop, FALLING) == 12
    assert stop.stopping_reason == EarlyStoppingReason.NOT_STOPPED


def test_a_trainer_without_pruning_is_refused():
    with pytest.raises(ValueError, match=r"MVPCallback beside PrunedEarlyStopping.*use Lightning's EarlyStopping\."):
        fit(PrunedEarlyStopping("val_loss"))


def test_a_metric_that_nobody_logs_is_told_at_the_first_check():
    mvp = callback(head="classifier")
    with pytest.raises(RuntimeError, match="`val_los` which is not available"):
        fit(mvp, PrunedEarlyStopping("val_los"))
    assert mvp.step == 2


def test_its_arguments_are_those_of_lightning():
    assert inspect.signature(PrunedEarlyStopping) == inspect.signature(EarlyStopping)
