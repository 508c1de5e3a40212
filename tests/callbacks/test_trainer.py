"""Features of Lightning's Trainer beside pruning: each works as without it, and the masks hold."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_mvp import ImageData, TaskDataModule, create_backbone

from .user import (
    CLASSES,
    EXAMPLE,
    FACTS,
    RECIPE,
    VIT_RECIPE,
    UserModule,
    callback,
    coloured,
    fit,
    holds,
    loader,
    make_trainer,
    removed_entries,
    trained,
)


def test_a_fast_dev_run_prunes_once_and_writes_nothing(tmp_path: Path):
    mvp, module = callback(head="classifier", warmup_steps=5, task=FACTS, zoo=tmp_path / "zoo"), UserModule()
    fit(module, mvp, fast_dev_run=True, max_steps=-1)
    assert mvp.step == 1
    holds(mvp, module)
    assert not (tmp_path / "zoo").exists()


def test_a_changing_accumulation_counts_in_the_refusal():
    mvp, scheduler = callback(head="classifier", steps_per_round=10), GradientAccumulationScheduler({0: 1, 1: 8})
    with pytest.raises(ValueError, match=r"at least 30 optimizer steps.*the Trainer will do 12"):
        make_trainer(mvp, scheduler, max_steps=-1, max_epochs=5).fit(UserModule(), loader(batches=8))


def test_a_trainer_that_goes_on_plans_for_what_is_left():
    trainer = make_trainer(callback(head="classifier"))
    trainer.fit(UserModule(), loader())
    trainer.fit_loop.epoch_loop.max_steps = 16
    with pytest.raises(ValueError, match=r"at least 6 optimizer steps.*the Trainer will do 4"):
        trainer.fit(UserModule(), loader())


def test_a_checkpoint_before_the_first_resumed_step_loses_nothing(tmp_path: Path):
    first = callback(head="classifier", example_input=None)
    trainer = fit(UserModule(), first, max_steps=8)
    trainer.save_checkpoint(tmp_path / "eight.ckpt")

    class SaveAtStart(L.Callback):
        def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    resumed = callback(head="classifier", example_input=None)
    again = make_trainer(resumed, SaveAtStart())
    again.fit(UserModule(), loader(), ckpt_path=tmp_path / "eight.ckpt", weights_only=True)
    states = [
        next(iter(torch.load(tmp_path / name, weights_only=True)["callbacks"].values()))
        for name in ("eight.ckpt", "again.ckpt")
    ]
    assert states[0]["pruner"].keys() == states[1]["pruner"].keys()
    assert all(
        torch.equal(mask, states[1]["pruner"]["masks"][name]) for name, mask in states[0]["pruner"]["masks"].items()
    )


def test_validating_a_checkpoint_is_no_resuming(tmp_path: Path):
    class Validated(UserModule):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    fit(Validated(), callback(head="classifier")).save_checkpoint(tmp_path / "last.ckpt")
    other = callback(head="classifier", pruning_ratio=0.8)
    (metrics,) = make_trainer(other).validate(
        Validated(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert metrics["val_loss"] > 0


def test_overfit_batches():
    mvp, module = callback(head="classifier"), UserModule()
    make_trainer(mvp, max_steps=-1, max_epochs=4, overfit_batches=3).fit(module, loader())
    assert mvp.step == 12
    holds(mvp, module)


def test_overfit_batches_with_our_data():
    part = coloured(torch.arange(36) % 3)
    data = TaskDataModule(ImageData("colours", CLASSES, part, part, part), batch_size=6)
    mvp, module = callback(head="classifier"), UserModule()
    make_trainer(mvp, max_steps=-1, max_epochs=6, overfit_batches=2).fit(module, datamodule=data)
    assert mvp.step == 12
    holds(mvp, module)


def test_limit_train_batches_counts_in_the_default_schedule():
    mvp, module = callback(head="classifier", steps_per_round=None), UserModule()
    make_trainer(mvp, max_steps=-1, max_epochs=4, limit_train_batches=5).fit(module, loader())
    assert mvp.schedule is not None
    assert mvp.schedule.steps_per_round == 4  # 60 % of 20 steps over 3 rounds
    holds(mvp, module)


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        while True:
            yield from loader().dataset


def test_an_iterable_data_set_has_as_many_steps_as_max_steps_says():
    mvp, module = callback(head="classifier", steps_per_round=None), UserModule()
    make_trainer(mvp, max_steps=10).fit(module, DataLoader(Endless(), 6))
    holds(mvp, module)
    with pytest.raises(ValueError, match="`steps_per_round` to be given"):
        make_trainer(callback(steps_per_round=None), max_steps=-1, max_epochs=1).fit(
            UserModule(), DataLoader(Endless(), 6)
        )


def test_max_time_that_is_long_enough_changes_nothing():
    mvp = callback(head="classifier", steps_per_round=6)
    assert trained(mvp, max_steps=20, max_time={"hours": 1}).step == 20


def test_max_time_that_ends_before_the_last_round_is_refused_after_a_few_steps():
    mvp = callback(head="classifier", steps_per_round=10_000)
    with pytest.raises(ValueError, match=r"`max_time` to hold.*step 30000.*0:00:20 are allowed"):
        fit(UserModule(), mvp, max_steps=40_000, max_time={"seconds": 20})
    assert mvp.step < 20


@pytest.mark.parametrize("how", ["tuner", "callback"])
def test_the_learning_rate_finder_leaves_no_trace_in_the_masks(how: str, tmp_path: Path):
    class Tuned(UserModule):
        lr = 0.05

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    plain, mvp, module = callback(head="classifier"), callback(head="classifier"), Tuned()
    fit(Tuned(), plain)
    options = {"num_training": 20, "update_attr": False}
    if how == "tuner":
        trainer = make_trainer(mvp, default_root_dir=tmp_path)
        Tuner(trainer).lr_find(module, loader(), **options)
    else:
        finder = LearningRateFinder(num_training_steps=20, update_attr=False)
        trainer = make_trainer(finder, mvp, default_root_dir=tmp_path)
    trainer.fit(module, loader())
    assert mvp.step == 12
    assert mvp.masks == plain.masks
    holds(mvp, module)


@pytest.mark.slow
def test_the_batch_size_finder_leaves_no_trace_in_the_steps(tmp_path: Path):
    class Data(L.LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
            return DataLoader(loader().dataset, self.batch_size)

    mvp, module = callback(head="classifier"), UserModule()
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=2)
    make_trainer(finder, mvp, default_root_dir=tmp_path).fit(module, datamodule=Data())
    assert mvp.step == 12
    holds(mvp, module)


# Other callbacks and loggers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("average", [WeightAveraging, EMAWeightAveraging])
def test_averaged_weights_are_masked_and_begin_anew_at_each_round(average: Any, first: bool):
    other, mvp, module, seen = average(), callback(head="classifier"), UserModule(optimizer="adamw"), []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            averaged = dict(other._average_model.module.net.named_parameters())
            removed = [float(part.abs().max()) for part in removed_entries(mvp, averaged)]
            at_round = trainer.global_step in (2, 4, 6)
            live = dict(pl_module.net.named_parameters())
            equal = all(torch.equal(tensor, live[name]) for name, tensor in averaged.items())
            seen.append((max(removed or [0.0]), equal if at_round else True))

    fit(module, *([other, mvp] if first else [mvp, other]), Watch())
    assert seen == [(0.0, True)] * 12
    holds(mvp, module)  # the averaged weights, which Lightning put into the module at the end
    small = mvp.small_model()
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-5, atol=1e-5)


def test_a_logger_gets_every_round_whatever_its_interval(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="run", version="0")
    trained(logger=logger, log_every_n_steps=100)
    rows = list(csv.DictReader((tmp_path / "run" / "0" / "metrics.csv").open()))
    logged = [(int(row["step"]), float(row["mvp/round"])) for row in rows if row.get("mvp/round")]
    assert [round_ for _, round_ in logged] == [0, 1, 2, 3]
    assert [step - logged[0][0] for step, _ in logged] == [0, 1, 3, 5]


def test_a_checkpoint_without_monitor_keeps_the_last_model(tmp_path: Path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4)
    mvp, module = callback(head="classifier"), UserModule()
    fit(module, mvp, checkpoint, enable_checkpointing=True)
    holds(mvp, module)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in saved.items())


def test_the_backbone_may_be_made_in_configure_model(tmp_path: Path):
    class Late(UserModule):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                torch.manual_seed(0)
                self.net = create_backbone(RECIPE)

    mvp = callback(head="classifier")
    trained(mvp, Late())


def test_the_same_callback_serves_another_module():
    mvp = callback(head="classifier")
    resnet, vit = UserModule(), UserModule(create_backbone(VIT_RECIPE))
    fit(resnet, mvp)
    first = mvp.masks
    fit(vit, mvp)
    holds(mvp, vit)
    assert list(mvp.masks) != list(first)
    fit(UserModule(), mvp)
    assert mvp.masks == first


def test_a_second_fit_of_a_pruned_module_says_that_units_are_gone():
    mvp, module = callback(head="classifier"), UserModule()
    fit(module, mvp)
    with pytest.warns(UserWarning, match=r"36 of the backbone's 72 units are zero before pruning begins"):
        fit(module, mvp)
    holds(mvp, module)
