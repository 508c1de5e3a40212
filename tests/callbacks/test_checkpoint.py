"""PrunedCheckpoint keeps the best of the pruned models, whatever came before the last round."""

from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_mvp import PrunedCheckpoint, PrunedEarlyStopping

from ..nursery import Nursery
from .user import UserModule, callback, loader, make_trainer, removed_entries

ROOT = Path(__file__).parents[2]
BEST_IS_UNPRUNED = (0.1, 0.2, 0.7, 0.5, 0.3, 0.4)


class Measured(UserModule):
    """Its validations measure these values, one after another; its training logs the step as a loss."""

    def __init__(self, values: tuple[float, ...] = BEST_IS_UNPRUNED, **options: Any) -> None:
        super().__init__(**options)
        self.values = values

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        step = float(self.trainer.global_step)
        self.log("each_step", step)
        self.log("each_epoch", step, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.validations = getattr(self, "validations", -1) + (not self.trainer.sanity_checking)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.values[max(self.validations, 0)])


def fit(*callbacks: L.Callback, batches: int = 2, module: L.LightningModule | None = None, **options: Any) -> L.Trainer:
    """Twelve steps, by default in six epochs, each with a validation at its end; the last round is after step 6."""
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, **{"enable_checkpointing": True, **options})
    trainer.fit(module or Measured(), loader(batches), loader(1), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Saves(PrunedCheckpoint):
    """Remembers at which step it saved on what value."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.saves: list[tuple[int, float]] = []

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        assert self.current_score is not None
        self.saves.append((trainer.global_step, round(float(self.current_score), 4)))
        super()._save_checkpoint(trainer, filepath)


def saves(folder: Path, *, module: L.LightningModule | None = None, trainer: Any = None, **options: Any) -> list:
    """What a checkpoint that keeps everything saved."""
    best = Saves(folder, save_top_k=-1, **{"monitor": "val_loss", **options})
    fit(callback(head="classifier"), best, module=module, **(trainer or {}))
    return best.saves


def test_the_best_pruned_model_is_kept_where_lightning_keeps_an_unpruned_one(tmp_path: Path):
    mvp = callback(head="classifier")
    plain, best = (
        ModelCheckpoint(tmp_path / "plain", monitor="val_loss"),
        PrunedCheckpoint(tmp_path, monitor="val_loss"),
    )
    with pytest.warns(UserWarning, match="PrunedCheckpoint with the same arguments"):
        fit(mvp, plain, best)
    names = [Path(checkpoint.best_model_path).name for checkpoint in (plain, best)]
    assert names == ["epoch=0-step=2.ckpt", "epoch4-step10.ckpt"]
    assert best.best_model_score == torch.tensor(0.3)
    states = [
        {
            name.removeprefix("net."): value
            for name, value in torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"].items()
        }
        for checkpoint in (plain, best)
    ]
    zero = [not any(bool(entries.any()) for entries in removed_entries(mvp, state)) for state in states]
    assert zero == [False, True]


def test_the_validation_after_the_last_round_counts_already(tmp_path: Path):
    assert saves(tmp_path) == [(6, 0.7), (8, 0.5), (10, 0.3), (12, 0.4)]


def test_a_validation_before_the_last_round_of_the_same_epoch_does_not_count(tmp_path: Path):
    values = tuple(0.1 * number for number in range(1, 13))
    often = {"val_check_interval": 1, "batches": 4}
    at_each = saves(tmp_path / "often", module=Measured(values), trainer=often, save_on_train_epoch_end=False)
    assert [step for step, _ in at_each] == list(range(6, 13))

    # One validation after 3 of 4 batches: at steps 3, 7 and 11; epochs end at 4, 8 and 12.
    some = {"val_check_interval": 3, "batches": 4}
    assert saves(tmp_path / "some", module=Measured(), trainer=some) == [(7, 0.2), (11, 0.7)]
    at_end = saves(tmp_path / "end", module=Measured(), trainer=some, save_on_train_epoch_end=True)
    assert at_end == [(8, 0.2), (12, 0.7)]


def test_a_value_left_over_from_before_the_last_round_never_decides(tmp_path: Path):
    """Validation at steps 4, 8, 12, asked at the end of every epoch: at step 6 the value is that of step 4."""
    rare = {"check_val_every_n_epoch": 2}
    found = saves(tmp_path, trainer=rare, save_on_train_epoch_end=True)
    assert found == [(8, 0.2), (10, 0.2), (12, 0.7)]


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [(2, [(8, 6.5), (10, 8.5), (12, 10.5)]), (4, [(12, 9.5)]), (3, [(9, 7.0), (12, 10.0)])],
    ids=["the round ends an epoch", "the round is in an epoch", "epochs of three"],
)
def test_an_average_over_the_epoch_of_the_last_round_does_not_count(
    tmp_path: Path, steps_per_epoch: int, expected: list[tuple[int, float]]
):
    assert saves(tmp_path, monitor="each_epoch", trainer={"batches": steps_per_epoch}) == expected


def test_a_name_that_training_and_validation_share_is_told_apart(tmp_path: Path):
    class Shared(Measured):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.log("loss", 0.01, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("loss", 0.9)

    # At the end of the epoch in which the last round was, the name holds that epoch's average.
    options = {"monitor": "loss", "trainer": {"batches": 4}}
    assert saves(tmp_path / "epoch", module=Shared(), **options) == [(12, 0.01)]
    assert saves(tmp_path / "val", module=Shared(), save_on_train_epoch_end=False, **options) == [(8, 0.9), (12, 0.9)]


def test_every_n_train_steps_waits_for_the_next_validation(tmp_path: Path):
    options = {"every_n_train_steps": 2, "save_on_train_epoch_end": False}
    # Validations after steps 3, 6, 9, 12: at 6 the save that is due waits for the one that follows the round.
    found = saves(tmp_path / "6", trainer={"batches": 3}, **options)
    assert found[0] == (6, 0.2)
    assert [step for step, _ in found] == [6, 8, 10, 12]
    # Validations after steps 4, 8, 12: the first value that counts is that of step 8.
    found = saves(tmp_path / "8", trainer={"batches": 4}, **options)
    assert found == [(8, 0.2), (10, 0.2), (12, 0.7)]


def test_every_n_train_steps_on_a_value_of_each_step_begins_with_the_first_pruned_batch(tmp_path: Path):
    # The batch of step 6 was computed before the round.
    found = saves(tmp_path, monitor="each_step", every_n_train_steps=1, trainer={"batches": 12})
    assert found == [(step, step - 1.0) for step in range(7, 13)]


def test_a_value_that_is_not_logged_again_does_not_begin_to_count(tmp_path: Path):
    class Seldom(Measured):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step in (5, 9):
                self.log("seldom", float(self.trainer.global_step))
            return super().training_step(batch, batch_idx)

    options = {"monitor": "seldom", "every_n_train_steps": 1, "trainer": {"batches": 12}}
    assert saves(tmp_path, module=Seldom(), **options) == [(10, 9.0), (11, 9.0), (12, 9.0)]


class Files(L.Callback):
    """What lies in a folder when the last round begins, and what ``best_model_path`` says then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.best = folder, {}, ""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            self.best = trainer.checkpoint_callback.best_model_path
            for path in self.folder.iterdir():
                self.seen[path.name] = torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"monitor": "val_loss"}, {"last.ckpt": 4}, {"epoch4-step10.ckpt": 10, "last.ckpt": 12}),
        ({"monitor": "val_loss", "every_n_train_steps": 1}, {"last.ckpt": 5}, {"last.ckpt": 12}),
        ({"monitor": "val_loss", "train_time_interval": timedelta(0)}, {"last.ckpt": 5}, {"last.ckpt": 12}),
        ({"monitor": "val_loss", "save_last": "link"}, {"last.ckpt": 4}, {"last.ckpt": 10}),
        ({"monitor": "val_loss", "save_top_k": 0}, {"last.ckpt": 4}, {"last.ckpt": 12}),
        ({}, {"last.ckpt": 4}, {"epoch5-step12.ckpt": 12, "last.ckpt": 12}),
        ({"save_last": None, "monitor": "val_loss"}, {}, {"epoch4-step10.ckpt": 10}),
        ({"save_last": None}, {}, {"epoch5-step12.ckpt": 12}),
        (
            {"save_last": None, "train_time_interval": timedelta(0)},
            {"epoch2-step5.ckpt": 5},
            {"epoch5-step12.ckpt": 12},
        ),
        (
            {"save_last": "link", "every_n_train_steps": 2},
            {"epoch1-step4.ckpt": 4, "last.ckpt": 4},
            {"epoch5-step12.ckpt": 12, "last.ckpt": 12},
        ),
    ],
    ids=str,
)
def test_what_serves_resuming_is_written_from_the_beginning_and_the_best_after_the_last_round(
    tmp_path: Path, options: Any, before: dict[str, int], after: dict[str, int]
):
    files, best = Files(tmp_path), PrunedCheckpoint(tmp_path, **{"save_last": True, **options})
    fit(callback(head="classifier"), best, files)
    assert (files.best, files.seen) == ("", before)
    left = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()}
    assert after.items() <= left.items()
    assert len(left) <= 2
    assert not [name for name in left if "=" in name]


@pytest.mark.parametrize("stop", [2, 5, 6, 9])
def test_a_run_that_dies_goes_on_from_the_last_checkpoint_and_ends_the_same(tmp_path: Path, stop: int):
    class Die(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            starts.append(trainer.global_step)
            if len(starts) == stop + 1:
                raise OSError("killed")

    def life(folder: Path, *others: L.Callback) -> tuple[Any, Any, Any]:
        mvp = callback(head="classifier")
        best = PrunedCheckpoint(folder, monitor="val_loss", save_last=True, every_n_epochs=1)
        fit(mvp, best, *others, batches=1, ckpt_path="last", module=ByEpoch())
        return mvp.masks, Path(best.best_model_path).name, {Path(k).name: v for k, v in best.best_k_models.items()}

    class ByEpoch(Measured):
        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", 1 / (1 + self.trainer.global_step))

    starts: list[int] = []
    whole = life(tmp_path / "whole")
    with pytest.raises(OSError, match="killed"):
        life(tmp_path / "killed", Die())
    assert life(tmp_path / "killed", Die()) == whole
    assert starts == list(range(stop + 1)) + list(range(stop, 12))


def test_explicit_file_names_are_lightnings(tmp_path: Path):
    best = PrunedCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}-{val_loss:.1f}")
    fit(callback(head="classifier"), best)
    assert Path(best.best_model_path).name == "epoch=4-val_loss=0.3.ckpt"


def test_on_an_exception_whatever_there_is_can_be_written_but_is_not_the_best(tmp_path: Path):
    class Fail(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                raise OSError("disk full")

    best = PrunedCheckpoint(tmp_path, monitor="val_loss", save_on_exception=True)
    with pytest.raises(OSError, match="disk full"):
        fit(callback(head="classifier"), best, Fail())
    (file,) = tmp_path.iterdir()
    assert torch.load(file, weights_only=True)["global_step"] == 5
    assert best.best_model_path == ""


def test_without_monitor_the_latest_pruned_model_is_kept(tmp_path: Path):
    best = PrunedCheckpoint(tmp_path, save_top_k=-1)
    fit(callback(head="classifier"), best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"epoch{epoch}-step{2 * epoch + 2}.ckpt" for epoch in (2, 3, 4, 5)
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"monitor": "val_loss"},
            r"`val_loss` was not measured on the pruned model;.*val_check_interval.*save_checkpoint",
        ),
        ({"monitor": "each_epoch"}, "`each_epoch` was not measured .* over an epoch in which it happens"),
        ({"monitor": "each_step", "every_n_train_steps": 20}, "no save was due after the last pruning round"),
    ],
    ids=lambda value: value.get("monitor") if isinstance(value, dict) else "",
)
def test_a_run_that_ends_within_an_epoch_without_a_best_model_says_why(tmp_path: Path, options: Any, why: str):
    with pytest.warns(UserWarning, match=f"PrunedCheckpoint has no best model: {why}"):
        fit(callback(head="classifier"), PrunedCheckpoint(tmp_path, **options), batches=24)
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_before_the_last_round_says_so(tmp_path: Path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    best = PrunedCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    with pytest.warns(UserWarning, match="no best model: the last pruning round had not happened"):
        fit(callback(head="classifier"), best, Stop())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert best.best_model_path == ""


def test_a_run_with_a_best_model_has_nothing_to_warn_of(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    fit(callback(head="classifier"), PrunedCheckpoint(tmp_path, monitor="val_loss"))
    assert not [warning for warning in recwarn if "best model" in str(warning.message)]


class SaveAt(L.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("stop", [4, 5, 7, 8, 11])
def test_a_resumed_run_has_the_best_model_of_one_without_interruption(tmp_path: Path, stop: int):
    class ByStep(Measured):
        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", BEST_IS_UNPRUNED[self.trainer.global_step // 2 - 1])

    def run(*callbacks: L.Callback, **options: Any) -> tuple[str, dict[str, float]]:
        best = PrunedCheckpoint(tmp_path / "runs", monitor="val_loss", save_top_k=2, enable_version_counter=False)
        fit(callback(head="classifier"), best, *callbacks, module=ByStep(), **options)
        return best.best_model_path, {name: float(value) for name, value in best.best_k_models.items()}

    whole = run(SaveAt(stop, tmp_path / "some.ckpt"))
    assert run(ckpt_path=tmp_path / "some.ckpt") == whole


@pytest.mark.parametrize(
    ("stop", "batches", "counting"),
    [(5, 4, [12]), (7, 4, [12]), (9, 4, [12]), (11, 4, [12]), (6, 2, [8, 10, 12])],
    ids=["before the round", "after it", "a pruned epoch", "late", "between epochs"],
)
def test_a_resumed_epoch_counts_only_if_all_of_it_came_after_the_last_round(
    tmp_path: Path, stop: int, batches: int, counting: list[int]
):
    def run(*callbacks: L.Callback, **options: Any) -> list[int]:
        best = Saves(tmp_path / "runs", monitor="each_epoch", save_top_k=-1)
        fit(callback(head="classifier"), best, *callbacks, batches=batches, **options)
        return [step for step, _ in best.saves]

    assert run(SaveAt(stop, tmp_path / "some.ckpt")) == counting
    assert run(ckpt_path=tmp_path / "some.ckpt") == counting


def test_a_second_fit_starts_without_a_best_model(tmp_path: Path):
    best, mvp = PrunedCheckpoint(tmp_path, monitor="val_loss"), callback(head="classifier")
    fit(mvp, best)
    assert best.best_model_score == torch.tensor(0.3)
    fit(mvp, best, module=Measured((0.1, 0.2, 0.9, 0.8, 0.7, 0.6)))
    assert best.best_model_score == torch.tensor(0.6)
    assert Path(best.best_model_path).name == "epoch5-step12.ckpt"


def test_validating_and_testing_afterwards_keeps_the_best_model(tmp_path: Path):
    best = PrunedCheckpoint(tmp_path, monitor="val_loss")
    module = Measured((*BEST_IS_UNPRUNED, 0.0))
    trainer = fit(callback(head="classifier"), best, module=module)
    (result,) = trainer.validate(module, loader(1), ckpt_path="best", weights_only=True, verbose=False)
    assert result["val_loss"] == 0.0
    assert best.best_model_score == torch.tensor(0.3)


def test_a_trainer_without_pruning_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"MVPCallback beside PrunedCheckpoint.*use Lightning's ModelCheckpoint\."):
        fit(PrunedCheckpoint(tmp_path, monitor="val_loss"))
    make_trainer(PrunedCheckpoint(tmp_path), enable_checkpointing=True).validate(Measured(), loader(1), verbose=False)


def test_a_metric_that_nobody_logs_is_told_at_the_first_validation(tmp_path: Path):
    mvp = callback(head="classifier")
    with pytest.raises(MisconfigurationException, match="could not find the monitored key"):
        fit(mvp, PrunedCheckpoint(tmp_path, monitor="val_los"))
    assert mvp.step == 2


def test_a_fast_dev_run_writes_nothing_and_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    mvp = callback(head="classifier", rounds=1, steps_per_round=1)
    fit(mvp, PrunedCheckpoint(tmp_path, monitor="val_loss", save_last=True), fast_dev_run=True)
    assert mvp.finished
    assert not list(tmp_path.iterdir())
    assert not [warning for warning in recwarn if "best model" in str(warning.message)]


def test_its_arguments_are_those_of_lightning():
    own, lightnings = (inspect.signature(which) for which in (PrunedCheckpoint, ModelCheckpoint))
    assert own == lightnings


def two_ranks(folder: str) -> None:
    """What the next test forks."""
    best = PrunedCheckpoint(folder, monitor="val_loss", every_n_train_steps=1, save_top_k=2)
    stop = PrunedEarlyStopping("val_loss", patience=2)
    module = Measured((0.1, 0.2, 0.6, 0.5, 0.7, 0.8))
    options = {"batches": 4, "max_steps": 20, "devices": 2, "strategy": "ddp"}
    trainer = fit(callback(head="classifier"), best, stop, module=module, **options)
    said = f"{trainer.global_step} {stop.wait_count} {Path(best.best_model_path).name} {len(best.best_k_models)}"
    (Path(folder) / f"rank{trainer.global_rank}").write_text(said)


def test_all_ranks_decide_alike(nursery: Nursery, tmp_path: Path):
    done = nursery.run("tests.callbacks.test_checkpoint:two_ranks", tmp_path, ranks=2, limit=200)
    assert done.well, done.text[-3000:]
    said = [path.read_text() for path in sorted(tmp_path.glob("rank*"))]
    assert len(said) == 2
    assert said[0] == said[1]
