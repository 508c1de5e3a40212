from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import OmegaConf
from torch import nn

from lightning_mvp import MetaVoteModule, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.backbones.layout import training_layout
from lightning_mvp.fitting.fit import AccuracyCurve, fit_quietly, make_trainer
from lightning_mvp.training.precision import resolve_precision
from lightning_mvp.training.task import one_cycle

from ..callbacks.user import FACTS, RECIPE, VIT_RECIPE

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.parametrize("cls", [TaskModule, MetaVoteModule])
def test_hyper_parameters_are_plain_containers_whatever_was_passed(cls: type[TaskModule], tmp_path: Path):
    extra: dict[str, Any] = {} if cls is TaskModule else {"report": OmegaConf.create({"widths": {"a": 1}})}
    facts = OmegaConf.create(FACTS.to_dict())
    module = cls(OmegaConf.create(RECIPE), facts, **extra, learning_rate=0.01, optimizer="adamw")
    assert is_plain(dict(module.hparams))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    loaded = cls.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert loaded.hparams["learning_rate"] == 0.01
    assert loaded.facts == FACTS
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_given_backbone_is_trained_and_not_saved_as_a_hyper_parameter():
    backbone = create_backbone(RECIPE)
    module = TaskModule.for_task(backbone, FACTS)
    assert module.backbone is backbone
    assert "backbone" not in module.hparams
    assert module.hparams["recipe"] == backbone.recipe


def test_backbones_that_cannot_be_rebuilt_are_refused():
    with pytest.raises(ValueError, match="create_backbone"):
        TaskModule.for_task(nn.Flatten(), FACTS)
    with pytest.raises(ValueError, match="num_classes=0"):
        TaskModule.for_task(timm.create_model("resnet10t", num_classes=3), FACTS)


@pytest.mark.parametrize(
    ("argument", "value"), [("optimizer", "lion"), ("schedule", "step"), ("learning_rate", 0.0), ("learning_rate", -1)]
)
def test_options_out_of_range_are_refused_by_name(argument: str, value: Any):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        TaskModule(RECIPE, FACTS.to_dict(), **{argument: value})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_are_not_decayed(optimizer: Any):
    module = TaskModule(RECIPE, FACTS.to_dict(), optimizer=optimizer, weight_decay=0.3, schedule="constant")
    decays = {
        id(parameter): group["weight_decay"]
        for group in module.configure_optimizers().param_groups
        for parameter in group["params"]
    }
    assert len(decays) == len(list(module.parameters()))
    assert all(decays[id(parameter)] == (0.3 if parameter.ndim > 1 else 0) for parameter in module.parameters())


def test_the_learning_rate_rises_over_a_tenth_and_falls_to_zero(target: TaskDataModule):
    class Rates(L.Callback):
        rates: tuple[float, ...] = ()

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.rates += (trainer.optimizers[0].param_groups[0]["lr"],)

    rates = Rates()
    fit_quietly(TaskModule(RECIPE, target.facts.to_dict(), learning_rate=0.5), target, 20, [rates])
    assert rates.rates == pytest.approx([0.5 * one_cycle(step, 20) for step in range(20)])
    assert rates.rates[:2] == pytest.approx((0.25, 0.5))
    assert list(rates.rates[1:]) == sorted(rates.rates[1:], reverse=True)
    assert one_cycle(19, 20) == one_cycle(25, 20) == 0


@pytest.mark.parametrize("cls", [TaskModule, MetaVoteModule])
def test_in_a_users_trainer_the_bar_names_no_epoch_that_is_none(cls: type[TaskModule], target: TaskDataModule):
    terminal, extra = io.StringIO(), {"report": {}} if cls is MetaVoteModule else {}
    bar = RichProgressBar(console_kwargs={"file": terminal, "force_terminal": True, "width": 150})
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=3, callbacks=[bar], **options)
    trainer.fit(cls(RECIPE, target.facts.to_dict(), **extra), datamodule=target)
    assert "Epoch 0" in terminal.getvalue()
    assert "/-2" not in terminal.getvalue()


def test_losses_and_accuracies_are_logged(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict())
    trainer = make_trainer(8, **QUIET)
    trainer.fit(module, datamodule=target)
    metrics = trainer.callback_metrics
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= metrics.keys()
    tested = trainer.test(module, datamodule=target, verbose=False)[0]
    assert tested["test_accuracy"] == pytest.approx(module.accuracy_on(*target.test_images()), abs=0.05)


def test_the_ridge_head_is_a_start_and_random_leaves_the_head_alone(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict())
    before = module.head.weight.clone()
    module.initialise_head(target, "random")
    assert torch.equal(module.head.weight, before)
    module.initialise_head(target)
    assert not torch.equal(module.head.weight, before)
    assert module.accuracy_on(*target.train_images()) > 0.5


def test_a_loss_that_is_not_finite_stops_with_the_step(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict())
    with torch.no_grad():
        module.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        fit_quietly(module, target, 3)


def test_a_quiet_fit_of_zero_steps_does_nothing_and_others_do_all(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict())
    before = module.head.weight.clone()
    fit_quietly(module, target, 0)
    assert torch.equal(module.head.weight, before)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        fit_quietly(module, target, 2)
    assert module.trainer.global_step == 2
    assert not torch.equal(module.head.weight, before)


def test_the_accuracy_curve_is_taken_at_the_steps_asked_for(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict())
    images, labels = target.test_images()
    start = module.accuracy_on(images, labels)
    curve = AccuracyCurve(images, labels, steps=(0, 2, 5, 50))
    fit_quietly(module, target, 5, [curve], accumulate_grad_batches=2)
    assert [step for step, _ in curve.points] == [0, 2, 5]
    assert curve.points[0][1] == start
    assert curve.points[-1][1] == module.accuracy_on(images, labels)
    assert curve.seconds > 0


def test_precision_is_resolved_only_if_automatic():
    assert resolve_precision("16-mixed") == "16-mixed"
    assert resolve_precision("auto") in ("bf16-mixed", "32-true")


CONV, VIT = nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.LayerNorm(4))


@pytest.mark.parametrize(
    ("native", "network", "expected"),
    [
        (True, None, "bf16-mixed"),
        (True, CONV, "bf16-mixed"),
        (True, VIT, "32-true"),
        (False, None, "32-true"),
        (False, CONV, "32-true"),
    ],
)
def test_automatic_precision_on_a_cpu(
    native: bool, network: nn.Module | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    cpu(monkeypatch, native)
    assert resolve_precision("auto", "cpu", network) == expected
    assert make_trainer(1, network=network, **QUIET).precision == expected
    assert resolve_precision("bf16-mixed", "cpu", network) == "bf16-mixed"


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_on_a_gpu_is_a_matter_of_the_gpu(native: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    for network in (None, CONV, VIT):
        assert resolve_precision("auto", "gpu", network) == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(("recipe", "expected"), [(RECIPE, "bf16-mixed"), (VIT_RECIPE, "32-true")])
def test_a_quiet_fit_looks_at_its_module(
    recipe: Any, expected: str, target: TaskDataModule, monkeypatch: pytest.MonkeyPatch
):
    cpu(monkeypatch, native=True)
    module = TaskModule(recipe, target.facts.to_dict())
    fit_quietly(module, target, 1)
    assert module.trainer.precision == expected


def cpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: native, raising=False)


LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}


def laid_out(module: TaskModule) -> bool:
    """Whether the first kernel with more than one channel and pixel is channels_last."""
    kernels = (p for p in module.backbone.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    return not next(kernels).is_contiguous()


@pytest.mark.parametrize("cls", [TaskModule, MetaVoteModule])
@pytest.mark.parametrize("channels_last", [None, True, False])
def test_the_layout_is_a_setting_that_checkpoints_keep(
    channels_last: bool | None, cls: type[TaskModule], target: TaskDataModule, tmp_path: Path
):
    extra: dict[str, Any] = {} if cls is TaskModule else {"report": {"widths": {}}}
    module = cls(RECIPE, target.facts.to_dict(), **extra, channels_last=channels_last)
    automatic = training_layout(module.backbone)
    assert module.layout == LAYOUTS.get(channels_last, automatic)  # type: ignore[arg-type]
    assert laid_out(module) == (module.layout == torch.channels_last)
    trainer = make_trainer(2, **QUIET)
    trainer.fit(module, datamodule=target)
    assert laid_out(module) == (module.layout == torch.channels_last)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert (loaded.hparams["channels_last"], loaded.layout) == (channels_last, module.layout)
    resumed = cls(RECIPE, target.facts.to_dict(), **extra)  # takes the checkpoint's settings for its own
    make_trainer(3, **QUIET).fit(resumed, datamodule=target, ckpt_path=tmp_path / "module.ckpt", weights_only=True)
    assert (resumed.hparams["channels_last"], resumed.layout) == (channels_last, module.layout)
    assert laid_out(resumed) == (module.layout == torch.channels_last)


@pytest.mark.parametrize("own", [None, False])
def test_checkpoints_from_before_the_setting_still_load(own: bool | None, target: TaskDataModule, tmp_path: Path):
    module = TaskModule(RECIPE, target.facts.to_dict())
    trainer = make_trainer(2, **QUIET)
    trainer.fit(module, datamodule=target)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    saved = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del saved["hyper_parameters"]["channels_last"]
    torch.save(saved, tmp_path / "old.ckpt")
    loaded = TaskModule.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert loaded.hparams["channels_last"] is None
    resumed = TaskModule(RECIPE, target.facts.to_dict(), channels_last=own)
    make_trainer(3, **QUIET).fit(resumed, datamodule=target, ckpt_path=tmp_path / "old.ckpt", weights_only=True)
    assert resumed.hparams["channels_last"] is own


def test_a_layout_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`channels_last`"):
        TaskModule(RECIPE, FACTS.to_dict(), channels_last="auto")  # type: ignore[arg-type]
