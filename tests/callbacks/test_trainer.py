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
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_mvp import ImageData, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone, find_groups
from lightning_mvp.pruning.zeros import masks_from_zeros
from lightning_mvp.tasks.partition import Part

from .user import (
    CLASSES,
    EXAMPLE,
    FACTS,
    RECIPE,
    VIT_RECIPE,
    UserModule,
    callback,
    fit,
    loader,
    make_trainer,
    removed_entries,
)


def holds(mvp: MVPCallback, module: UserModule) -> None:
    """All rounds happened, and the module is zero where, and only where, the masks say."""
    assert mvp.finished
    assert mvp.masks.pruning_ratio == pytest.approx(0.5, abs=0.05)
    assert masks_from_zeros(module.net, mvp.groups) == mvp.masks


def trained(mvp: MVPCallback | None = None, module: UserModule | None = None, **options: Any) -> MVPCallback:
    mvp = callback(head="classifier") if mvp is None else mvp
    module = UserModule() if module is None else module
    fit(module, mvp, **options)
    holds(mvp, module)
    return mvp


# Optimization ---------------------------------------------------------------------------------------------------------


class Manual(UserModule):
    """Manual optimization, with an optimizer for the head beside the backbone's; ``inner`` steps for each batch."""

    def __init__(self, inner: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.inner = inner

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        backbone, head = self.optimizers()
        for _ in range(self.inner):
            backbone.zero_grad()
            head.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            backbone.step()
        head.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9) for part in (self.net, self.classifier)]


def test_manual_optimization_counts_the_steps_of_the_backbones_optimizer():
    mvp, module = callback(head="classifier"), Manual()
    trainer = fit(module, mvp, max_steps=24)
    assert (trainer.global_step, mvp.step) == (24, 12)
    holds(mvp, module)


def test_manual_optimization_with_several_steps_a_batch():
    mvp, module = callback(head="classifier"), Manual(inner=3)
    trainer = make_trainer(mvp, max_steps=-1, max_epochs=1)
    trainer.fit(module, loader(batches=4))
    assert mvp.step == 12
    holds(mvp, module)


def test_with_manual_optimization_the_assumed_number_of_steps_is_said():
    mvp = callback(head="classifier", steps_per_round=None)
    with pytest.warns(
        UserWarning, match=r"12 steps of the backbone's are assumed.*last pruning round comes with step 6"
    ):
        fit(Manual(), mvp, max_steps=24)
    assert mvp.schedule is not None
    assert mvp.schedule.steps_per_round == 2  # 60 % of 12 steps over 3 rounds


def test_removed_units_count_in_no_gradient_norm():
    norms: list[float] = []

    class Clipped(UserModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            gradients = {name: parameter.grad for name, parameter in self.net.named_parameters()}
            norms.append(max([float(part.abs().max()) for part in removed_entries(mvp, gradients)] or [0.0]))  # type: ignore[arg-type]

    mvp = callback(head="classifier")
    trained(mvp, Clipped(create_backbone(VIT_RECIPE)), gradient_clip_val=0.1)  # where dead units do get gradients
    assert norms == [0.0] * 12


def test_removed_units_stay_zero_whatever_an_optimizer_does():
    class Noisy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter += 1e-3
            return loss

    class Module(UserModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Noisy(self.parameters(), lr=0.05)

    trained(module=Module())


def test_an_optimizer_that_looks_twice_at_a_batch_does_one_step():
    class TwoLooks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    class Module(UserModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return TwoLooks(self.parameters(), lr=0.05)

    assert trained(module=Module()).step == 12


def test_an_optimizer_that_is_replaced_is_followed():
    class Replace(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.strategy.optimizers = [pl_module.configure_optimizers()]

    mvp, module = callback(head="classifier"), UserModule(create_backbone(VIT_RECIPE), optimizer="adamw")
    fit(module, mvp, Replace())
    assert mvp.step == 12
    holds(mvp, module)


def test_clipping_by_norm_bounds_what_is_left():
    class Watched(UserModule):
        largest = 0.0

        def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
            super().configure_gradient_clipping(*args, **options)
            norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
            self.largest = max(self.largest, float(norm))

    module = Watched()
    trained(module=module, gradient_clip_val=0.1)
    assert module.largest == pytest.approx(0.1, rel=1e-4)


def test_accumulation_that_changes_between_epochs():
    mvp, module = callback(head="classifier"), UserModule()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3})
    make_trainer(mvp, scheduler, max_steps=-1, max_epochs=3).fit(module, loader(batches=6))
    assert mvp.step == 6 + 2 + 2
    holds(mvp, module)


# Precision and compilation --------------------------------------------------------------------------------------------


class Overflowing(UserModule):
    """Gradients of the given steps are infinite."""

    def __init__(self, steps: set[int], **options: Any) -> None:
        super().__init__(**options)
        self.steps = steps

    def on_after_backward(self) -> None:
        if self.trainer.global_step in self.steps:
            for parameter in self.net.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(torch.inf)


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))


def test_steps_that_the_scaler_leaves_out_are_not_scored_but_count():
    counts = []

    class Counting(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            counts.append((mvp.step, float(mvp.pruner.criterion.count), mvp.pruner.round))

    mvp, module = callback(head="classifier", rounds=2, steps_per_round=3), Overflowing({1})
    fit(module, mvp, Counting(), max_steps=8, plugins=[scaled()])
    assert counts[:3] == [(1, 1.0, 0), (2, 1.0, 0), (3, 0.0, 1)]
    holds(mvp, module)


def test_a_round_waits_for_the_first_step_with_finite_gradients():
    rounds = []

    class Rounds(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            rounds.append(mvp.pruner.round)

    mvp, module = callback(head="classifier"), Overflowing({0, 1, 2})
    fit(module, mvp, Rounds(), max_steps=8, plugins=[scaled()])
    assert rounds == [0, 0, 0, 2, 2, 3, 3, 3]  # the first comes with the second
    holds(mvp, module)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_scores_with_a_scaler_are_those_without():
    """The scaler multiplies the loss by 256; in float32 that changes nothing after unscaling."""

    class Float32(UserModule):
        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(images.float())

    with_scaler, without = (callback(head="classifier", rounds=1) for _ in range(2))
    fit(Float32(), with_scaler, plugins=[scaled()])
    fit(Float32(), without)
    assert with_scaler.masks == without.masks
    for name, score in without.importance.items():
        torch.testing.assert_close(with_scaler.importance[name], score, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["example", "first input"])
def test_other_precisions(precision: Any, example: Any, tmp_path: Path):
    mvp = callback(head="classifier", example_input=example, task=FACTS, zoo=tmp_path / "zoo")
    module = UserModule()
    fit(module, mvp, precision=precision)
    holds(mvp, module)
    assert next(mvp.small_model().parameters()).dtype == next(module.parameters()).dtype
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert {array.dtype.name for array in entry.weights.values()} <= {"float32", "int64"}
    again = callback(head="classifier", example_input=example)
    fit(module, again, precision=precision)
    holds(again, module)


class CompiledBackbone(UserModule):
    """``torch.compile`` of a part; the eager backend traces as any other and needs no C++ compiler."""

    def __init__(self, wrap: bool, **options: Any) -> None:
        super().__init__(**options)
        if wrap:
            self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]
        else:
            self.net.compile(backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["module", "backbone", "in place"])
def test_compiled_modules_are_pruned_as_others_are(what: str, tmp_path: Path):
    plain, mvp = trained(), callback(head="classifier", task=FACTS, zoo=tmp_path)
    module = UserModule() if what == "module" else CompiledBackbone(wrap=what == "backbone")
    compiled: Any = torch.compile(module, backend="eager") if what == "module" else module
    with pytest.raises(ValueError, match=r"`example_input` with a module under torch\.compile"):
        fit(compiled, callback(head="classifier", example_input=None))
    fit(compiled, mvp)
    assert mvp.masks == plain.masks
    small = mvp.small_model()
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-4, atol=1e-5)
    (entry,) = ModelZoo(tmp_path).entries()
    assert entry.prototypes is not None, "of the batches' own images"


def test_synchronised_batch_norm_has_the_same_groups_and_exports_plain_ones():
    module = UserModule()
    names = [group.name for group in find_groups(module.net, EXAMPLE)]
    module.net = nn.SyncBatchNorm.convert_sync_batchnorm(module.net)
    assert [group.name for group in find_groups(module.net, EXAMPLE)] == names
    mvp = trained(module=module)
    small = mvp.small_model()
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-5, atol=1e-5)


# What the Trainer runs ------------------------------------------------------------------------------------------------


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


# Ordinary trouble -----------------------------------------------------------------------------------------------------


def test_a_loader_that_raises_leaves_the_zoo_as_it_was(tmp_path: Path):
    class Broken(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 72

        def __getitem__(self, index: int) -> Any:
            if index == 50:
                raise OSError("image 50 is damaged")
            return loader().dataset[index]

    mvp = callback(head="classifier", task=FACTS, zoo=tmp_path / "zoo")
    with pytest.raises(OSError, match="image 50 is damaged"):
        make_trainer(mvp).fit(UserModule(), DataLoader(Broken(), 6))
    assert mvp.finished
    assert not len(ModelZoo(tmp_path / "zoo"))


def test_a_backbone_that_the_loss_ignores_is_named():
    class Ignored(UserModule):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            features = self.net(batch[0]).detach()
            return F.cross_entropy(self.classifier(features), batch[1])

    with pytest.raises(RuntimeError, match=r"`bn1\.weight` got no gradient"):
        fit(Ignored(), callback(head="classifier"))


def coloured(labels: Tensor) -> Part:
    """Images of one colour for each class, with noise."""
    generator = torch.Generator().manual_seed(int(labels.sum()))
    images = torch.randn(len(labels), 3, 16, 16, generator=generator)
    images[torch.arange(len(labels)), labels] += 1.0
    return Part((127 + 40 * images).clamp(0, 255).to(torch.uint8), labels)


def test_a_class_that_is_missing_from_validation_is_no_obstacle(tmp_path: Path):
    every, two = torch.arange(36) % 3, torch.arange(12) % 2
    data = ImageData("colours", CLASSES, coloured(every), coloured(two), coloured(every))
    module = TaskModule.for_task(create_backbone(RECIPE), TaskDataModule(data).facts)
    mvp = MVPCallback(pruning_ratio=0.5, rounds=2, head="head", task=module.facts, zoo=tmp_path / "zoo")
    trainer = make_trainer(mvp, max_steps=12)
    trainer.fit(module, datamodule=TaskDataModule(data, batch_size=6))
    assert torch.isfinite(trainer.callback_metrics["val_accuracy"])
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert entry.prototypes is not None
    assert entry.prototypes.shape[0] == 3


def test_a_class_without_training_images_is_refused_and_named():
    two, every = torch.arange(12) % 2, torch.arange(36) % 3
    data = ImageData("colours", CLASSES, coloured(two), coloured(every), coloured(every))
    with pytest.raises(ValueError, match=r"class 'blue' of data set 'colours' to have training images"):
        TaskDataModule(data)


def test_a_foreign_loader_without_one_of_the_classes_writes_an_entry_without_prototypes(tmp_path: Path):
    images, labels = zip(*[pair for pair in loader().dataset if int(pair[1]) != 2], strict=True)
    mvp = callback(head="classifier", task=FACTS, zoo=tmp_path / "zoo")
    dataset = TensorDataset(torch.stack(images), torch.stack(labels))
    make_trainer(mvp, max_steps=8).fit(UserModule(), DataLoader(dataset, 6))
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert entry.prototypes is None
