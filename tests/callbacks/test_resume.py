"""A run that stopped in the middle of pruning goes on as if it had not."""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_mvp import ModelZoo

from .user import EXAMPLE, FACTS, UserModule, callback, make_trainer
from .user import loader as many_batches


def loader() -> DataLoader:
    """One batch again and again: torch's loader can't go on in the middle of an epoch."""
    return many_batches(batches=1)


class SaveAt(L.Callback):
    """Writes a checkpoint once so many steps are done."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [2, 5, 8], ids=["at a round", "between rounds", "after the last"])
@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["example", "first input"])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(tmp_path: Path, step: int, example: Any):
    whole = callback(head="classifier", task=FACTS, zoo=tmp_path / "whole")
    module = UserModule(optimizer="adamw")
    make_trainer(whole, SaveAt(step, tmp_path / "some.ckpt")).fit(module, loader())

    resumed = callback(head="classifier", task=FACTS, zoo=tmp_path / "resumed", example_input=example)
    again = UserModule(optimizer="adamw")
    if step == 2:  # a zoo of its own, for which the module begins with θ⁰
        assert not (tmp_path / "resumed").exists()
    else:  # only the zoo knows θ⁰
        spoil(again)
        shutil.copytree(tmp_path / "whole", tmp_path / "resumed", ignore=shutil.ignore_patterns("tasks"))
    trainer = make_trainer(resumed)
    trainer.fit(again, loader(), ckpt_path=tmp_path / "some.ckpt", weights_only=True)

    assert trainer.global_step == 12
    assert resumed.step == 12
    assert resumed.masks == whole.masks
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    one, two = (ModelZoo(tmp_path / name) for name in ("whole", "resumed"))
    assert one.theta0_fingerprint == two.theta0_fingerprint
    assert one.names == two.names
    entries = [zoo[zoo.names[0]] for zoo in (one, two)]
    assert all((entries[0].importance[name] == entries[1].importance[name]).all() for name in entries[0].importance)
    assert (entries[0].prototypes == entries[1].prototypes).all()


class Stop(L.Callback):
    """Ends the run early."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def names_of_tensors(state: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of those among them that are as large as weights."""
    names = []
    for key, value in state.items():
        if isinstance(value, dict):
            names += names_of_tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and value.numel() > 1:
            names.append(f"{prefix}{key}")
    return names


def spoil(module: L.LightningModule) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1.0


def pruning_state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["callbacks"]["MVPCallback"]


def resume(path: Path, module: L.LightningModule, **options: Any) -> None:
    mvp = callback(head="classifier", **options)
    make_trainer(mvp).fit(module, loader(), ckpt_path=path, weights_only=True)


def test_a_checkpoint_holds_no_theta0_and_its_zoo_is_needed_to_go_on(tmp_path: Path):
    checkpoint, without, zoo = tmp_path / "some.ckpt", tmp_path / "without.ckpt", tmp_path / "zoo"
    # A step before the first decision: no entry comes of it.
    mvp = callback(head="classifier", task=FACTS, zoo=zoo)
    with pytest.warns(UserWarning, match="Nothing was added to the zoo"):
        make_trainer(mvp, SaveAt(5, checkpoint), Stop(5)).fit(UserModule(), loader())
    make_trainer(callback(head="classifier"), SaveAt(5, without), Stop(5)).fit(UserModule(), loader())
    state = pruning_state(checkpoint)
    assert state["theta0_fingerprint"] == ModelZoo(zoo).theta0_fingerprint
    assert pruning_state(without)["theta0_fingerprint"] is None
    tensors = [name for path in (checkpoint, without) for name in names_of_tensors(pruning_state(path))]
    assert tensors
    assert all(
        name.startswith(("pruner.masks", "pruner.importance", "pruner.sums", "prototypes.means")) for name in tensors
    )

    other = UserModule()
    spoil(other)
    with pytest.raises(ValueError, match=r"zoo of the run that is resumed.* there is none at .*elsewhere"):
        resume(checkpoint, other, task=FACTS, zoo=tmp_path / "elsewhere")
    make_trainer(callback(head="classifier", task=FACTS, zoo=tmp_path / "foreign")).fit(other, loader())
    with pytest.raises(ValueError, match=r"foreign is of another θ⁰\. Name that zoo"):
        resume(checkpoint, other, task=FACTS, zoo=tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"written without one.* Resume without `zoo`"):
        resume(without, UserModule(), task=FACTS, zoo=zoo)
    resume(checkpoint, other)
    assert len(ModelZoo(zoo)) == 0
    resume(checkpoint, other, task=FACTS, zoo=zoo)
    assert len(ModelZoo(zoo)) == 1


def test_a_checkpoint_that_holds_theta0_still_resumes(tmp_path: Path):
    """As it was written before fingerprints were."""
    path, module = tmp_path / "some.ckpt", UserModule()
    theta0 = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
    make_trainer(callback(head="classifier"), SaveAt(5, path)).fit(module, loader())
    saved = torch.load(path, weights_only=True)
    state = saved["callbacks"]["MVPCallback"]
    for key in ("backbone", "head", "task", "theta0_fingerprint"):
        del state[key]
    del state["pruner"]["inputs"]
    torch.save({**saved, "callbacks": {"MVPCallback": {**state, "theta0": theta0}}}, path)
    resume(path, module, task=FACTS, zoo=tmp_path / "zoo")
    stored = ModelZoo(tmp_path / "zoo").theta0()
    assert all((tensor.numpy() == stored[name]).all() for name, tensor in theta0.items())


def test_a_resumed_longer_run_keeps_its_schedule(tmp_path: Path):
    """60 % of 10 steps over 3 rounds is a round every 2 steps; a longer run must not move what began."""
    first = callback(head="classifier", steps_per_round=None)
    make_trainer(first, SaveAt(3, tmp_path / "three.ckpt"), max_steps=10).fit(UserModule(), loader())
    longer = callback(head="classifier", steps_per_round=None)
    make_trainer(longer, max_steps=40).fit(UserModule(), loader(), ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    assert longer.schedule == first.schedule
    assert longer.masks == first.masks


def test_other_settings_than_the_checkpoints_are_refused_and_named(tmp_path: Path):
    first = callback(head="classifier")
    make_trainer(first, SaveAt(3, tmp_path / "three.ckpt")).fit(UserModule(), loader())
    other = callback(head="classifier", pruning_ratio=0.8)
    with pytest.raises(ValueError, match=r"it had pruning_ratio=0\.5, not 0\.8"):
        make_trainer(other).fit(UserModule(), loader(), ckpt_path=tmp_path / "three.ckpt", weights_only=True)


class Validated(UserModule):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Taken in the middle of an epoch and of a round: two rounds of three are done, and a step more."""
    path = tmp_path / "five.ckpt"
    make_trainer(callback(head="classifier"), SaveAt(5, path)).fit(UserModule(), many_batches())
    return path


def test_a_loader_without_state_restores_all_but_the_order_of_images_and_says_so(checkpoint: Path):
    class AtStart(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            self.seen = copy.deepcopy(
                (mvp.step, mvp.schedule, mvp.masks, mvp.importance, dict(mvp.pruner.criterion.sums))
            )

    mvp, start = callback(head="classifier"), AtStart()
    with pytest.warns(UserWarning, match="the images come in another order"):
        make_trainer(mvp, start).fit(UserModule(), many_batches(), ckpt_path=checkpoint, weights_only=True)
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["MVPCallback"]
    step, schedule, masks, importance, sums = start.seen
    assert (step, asdict(schedule)) == (5, state["schedule"])
    for name, mask in state["pruner"]["masks"].items():
        assert not mask.all()
        assert torch.equal(masks[name], mask)
        assert torch.equal(importance[name], state["pruner"]["importance"][name])
        assert sums[name].count_nonzero()
        assert torch.equal(sums[name], state["pruner"]["sums"][name])
    assert mvp.finished
    assert mvp.step == 12


def test_a_checkpoint_of_the_middle_is_one_of_the_plain_module(checkpoint: Path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    module = UserModule()
    assert list(state) == list(module.state_dict())
    module.load_state_dict(state, strict=True)
    assert not module.net.bn1.weight.all()  # removed units are zero, not cut


def test_a_trainer_without_the_callback_goes_on_from_a_checkpoint_of_the_middle(checkpoint: Path):
    saved, module = torch.load(checkpoint, weights_only=True)["state_dict"], Validated()
    make_trainer().validate(module, many_batches(), ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in module.state_dict().items())
    trainer = make_trainer(max_steps=8)
    trainer.fit(module, many_batches(), ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == 8
    assert not torch.equal(module.classifier.weight, saved["classifier.weight"])


def test_a_second_fit_of_the_same_callback_starts_anew():
    mvp = callback(head="classifier")
    make_trainer(mvp).fit(UserModule(), loader())
    first = mvp.masks
    make_trainer(mvp).fit(UserModule(), loader())
    assert mvp.step == 12
    assert mvp.masks == first
