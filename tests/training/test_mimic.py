"""Mimicking: the loss, who the teacher is, where it is not, and that resumed runs end like whole ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from lightning_mvp import ImageData, MetaVoteModule, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.backbones import CostModel, find_groups
from lightning_mvp.fitting.fit import fit_quietly, make_trainer
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.training.mimic import Teacher, linear_map, mimic_loss
from lightning_mvp.training.rounds import OwnCutter, prune_and_cut
from lightning_mvp.zoo.rebuild import dense_backbone

from ..callbacks.user import RECIPE
from .conftest import task

ZooOf = Callable[[str], ModelZoo]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}


def test_the_loss_is_a_share_of_the_teachers_variance_over_its_kept_features():
    student, teacher = torch.randn(6, 2, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    kept = torch.tensor([1, 4])
    wanted = teacher.detach()[:, kept]
    expected = F.mse_loss(student, wanted) / wanted.var(0, correction=0).mean()
    loss = mimic_loss(student, teacher, kept)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    zeroed = torch.zeros(6, 5).index_copy(1, kept, student.detach())
    torch.testing.assert_close(mimic_loss(zeroed, teacher, kept), expected)
    with pytest.raises(ValueError, match="`kept`"):
        mimic_loss(student, teacher)
    assert torch.isfinite(mimic_loss(torch.zeros(1, 2), torch.zeros(1, 2)))  # one image has no variance


def test_a_linear_map_finds_what_is_linear():
    features = torch.randn(400, 3)
    weight, bias = linear_map(features, features @ torch.ones(3, 7) + 2)
    assert weight.shape == (7, 3)
    assert (features @ weight.T + bias - features @ torch.ones(3, 7) - 2).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_vote_mimics_the_zoos_backbone_and_nothing_of_it_stays(kind: str, zoo_of: ZooOf, target: TaskDataModule):
    zoo = zoo_of(kind)
    plain = MetaVoteModule.from_zoo(zoo, target, neighbours=2, learning_rate=0.003)
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=2, mimic=10, learning_rate=0.003)
    assert module.teacher is not None
    for name, tensor in dense_backbone(zoo).named_parameters():
        assert torch.equal(tensor, module.teacher.backbone.get_parameter(name))
    assert module.teacher.kept is not None
    assert len(module.teacher.kept) == module.head.in_features
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.parameters())) == len(list(plain.parameters()))
    assert module.to_torch().state_dict().keys() == plain.to_torch().state_dict().keys()

    seen = preprocess(target.train_images()[0], target.facts)

    def distance(student: MetaVoteModule) -> torch.Tensor:
        assert module.teacher is not None
        with torch.no_grad():
            return module.teacher.loss(student.backbone.eval()(seen), seen)

    moments = copy.deepcopy(module.teacher.state_dict()["moments"])
    for student in (plain, module):
        student.train()
        fit_quietly(student, target, 60)
    for name, tensor in module.teacher.state_dict()["moments"].items():
        assert torch.equal(tensor, moments[name]), "the teacher stays as it was"
    assert distance(module) < distance(plain)


def test_without_mimicking_a_checkpoint_says_what_it_said(zoo_of: ZooOf, target: TaskDataModule):
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, mimic=0.0)
    assert not {"mimic", "zoo", "theta0"} & set(module.hparams)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert not checkpoint
    with pytest.raises(ValueError, match="`mimic` to be a number of at least 0, but got -1"):
        TaskModule(RECIPE, target.facts.to_dict(), mimic=-1)


def test_a_wider_teacher_is_mimicked_through_a_map(zoo_of: ZooOf, target: TaskDataModule):
    wide = create_backbone({**RECIPE, "model": "resnet18"})
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, mimic=1, theta0=wide)
    assert module.teacher is not None
    assert module.teacher.map is not None
    assert module.teacher.map[0].shape[1] == module.head.in_features
    fit_quietly(module, target, 2)


def test_who_has_no_teacher_is_refused(target: TaskDataModule):
    module = TaskModule(RECIPE, target.facts.to_dict(), mimic=1)
    with pytest.raises(ValueError, match=r"module\.take_teacher\(theta0, datamodule\) before fit"):
        fit_quietly(module, target, 2)


def test_a_resumed_run_mimics_on(zoo_of: ZooOf, target: TaskDataModule, tmp_path: Path):
    """With the zoo, or with θ⁰, it ends as the whole run does; with neither, or another θ⁰, it is refused."""
    zoo, last = zoo_of("resnet"), tmp_path / "last.ckpt"
    whole = MetaVoteModule.from_zoo(zoo, target, neighbours=2, mimic=10, learning_rate=0.003)
    trainer = make_trainer(8, [_Save(4, last)], **QUIET)
    trainer.fit(whole, datamodule=target)
    given: list[dict[str, Any]] = [{"zoo": zoo.path}, {"theta0": dense_backbone(zoo)}]
    for options in given:
        again = MetaVoteModule.load_from_checkpoint(last, weights_only=True, **options)
        make_trainer(8, **QUIET).fit(again, datamodule=target, ckpt_path=last, weights_only=True)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
    again = MetaVoteModule.load_from_checkpoint(last, weights_only=True)
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items()), "needs no teacher"
    with pytest.raises(ValueError, match="give zoo=… or theta0=…"):
        make_trainer(8, **QUIET).fit(again, datamodule=target, ckpt_path=last, weights_only=True)
    with pytest.raises(ValueError, match=r"the teacher that the checkpoint's model mimics.*zoo=…"):
        MetaVoteModule.load_from_checkpoint(last, weights_only=True, theta0=create_backbone(RECIPE))


def test_pruning_in_a_trainer_and_cutting_between_rounds_mimic_alike(data: ImageData):
    target = task(data, "acd", "one")
    backbone = create_backbone(RECIPE)
    pruning = MVPCallback(rounds=2, pruning_ratio=0.5, steps_per_round=3, head="head")

    def module() -> TaskModule:
        made = TaskModule.for_task(copy.deepcopy(backbone), target.facts, mimic=2, learning_rate=0.01)
        made.initialise_head(target)
        made.take_teacher(backbone, target)
        return made

    zeroed = module()
    fit_quietly(zeroed, target, 8, [pruning], precision="32-true")
    groups = find_groups(backbone, target_example(target))
    cutter = OwnCutter(groups, pruning.pruner.cost, pruning.settings)
    cut = prune_and_cut(module(), target, cutter, pruning.settings, 8, precision="32-true")
    assert cutter.masks.fingerprint == pruning.masks.fingerprint
    assert zeroed.teacher is not None
    assert zeroed.teacher.kept is not None
    assert len(zeroed.teacher.kept) == cut.head.in_features < zeroed.head.in_features
    small = pruning.small_model()
    for name, tensor in cut.backbone.state_dict().items():
        torch.testing.assert_close(tensor, small.state_dict()[f"0.{name}"], rtol=1e-3, atol=1e-4)


def test_a_map_is_fitted_anew_when_features_are_cut(data: ImageData):
    target = task(data, "acd", "one")
    backbone, wide = create_backbone(RECIPE), create_backbone({**RECIPE, "model": "resnet18"})
    module = TaskModule.for_task(backbone, target.facts, mimic=1, learning_rate=0.01)
    module.initialise_head(target)
    module.take_teacher(wide, target)
    pruning = PruningSettings(rounds=2, pruning_ratio=0.5, steps_per_round=2)
    groups = find_groups(backbone, module.example)
    cutter = OwnCutter(groups, CostModel(backbone, groups, module.example), pruning)
    small = prune_and_cut(module, target, cutter, pruning, 6, precision="32-true")
    assert small.head.in_features < module.head.in_features


def test_other_ranks_hear_of_the_teacher(zoo_of: ZooOf, target: TaskDataModule):
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, mimic=2)
    assert module.teacher is not None
    other = Teacher.unpack(*module.teacher.pack())
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(other.features(images), module.teacher.features(images))
    assert other.kept is not None
    assert torch.equal(other.kept, module.teacher.kept)
    assert other.fingerprint == module.teacher.fingerprint


def target_example(data: TaskDataModule) -> torch.Tensor:
    return torch.zeros(2, 3, data.facts.input_size, data.facts.input_size)


class _Save(L.Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
