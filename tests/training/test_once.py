"""A small model at one go, without a zoo and without training."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_mvp import ImageData, TaskDataModule, create_backbone, prune_once
from lightning_mvp.backbones.features import features_of, reestimate_batch_norm
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.target import reestimation_batches

from .conftest import RECIPES, task


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_reconstruction_is_nearer_to_the_dense_features_than_the_cut(kind: str, target: TaskDataModule) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(RECIPES[kind])
    before, modes = fingerprint(backbone.state_dict()), [module.training for module in backbone.modules()]
    cut, better, again = (prune_once(backbone, target, 0.5, images=images) for images in (0, 1000, 1000))
    assert fingerprint(backbone.state_dict()) == before
    assert [module.training for module in backbone.modules()] == modes
    assert cut.masks.fingerprint == better.masks.fingerprint
    assert better.masks.pruning_ratio == pytest.approx(0.5, abs=0.05)
    assert fingerprint(better.module.state_dict()) == fingerprint(again.module.state_dict())
    assert better.val_accuracy == better.module.accuracy_on(*target.val_images()) > 0.5

    head = copy.deepcopy(better.module.head)
    better.module.initialise_head(target)
    assert torch.equal(head.weight, better.module.head.weight), "the head is its own features', in closed form"

    dense = copy.deepcopy(backbone)
    reestimate_batch_norm(dense, reestimation_batches(target))
    images = preprocess(target.test_images()[0], target.facts)
    wanted = features_of(dense, images)
    kept = better.groups.kept_features(better.masks, wanted.shape[1])
    errors = [(features_of(run.module.backbone, images) - wanted[:, kept]).norm() for run in (cut, better)]
    assert errors[1] < 0.8 * errors[0]
    fit_quietly(better.module, target, 2)


def test_criteria_choose_what_they_would_choose_alone(data: ImageData, target: TaskDataModule) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(RECIPES["resnet"])
    taylor, magnitude, random = (
        prune_once(backbone, target, 0.5, criterion=criterion, images=0)  # type: ignore[arg-type]
        for criterion in ("taylor", "magnitude", "random")
    )
    best = top_units(magnitude_importance(backbone.state_dict(), magnitude.groups), magnitude.masks.kept)
    assert best.fingerprint == magnitude.masks.fingerprint
    assert len({run.masks.fingerprint for run in (taylor, magnitude, random)}) == 3
    other = prune_once(backbone, task(data, "bef", "other"), 0.5, images=0)
    assert other.masks.fingerprint != taylor.masks.fingerprint, "Taylor scores are the task's"
    spared = prune_once(backbone, target, 0.5, exclude="residual", images=0)
    assert all(group.kind != "residual" for group in spared.groups)


def test_bad_arguments_are_refused(target: TaskDataModule) -> None:
    backbone = create_backbone(RECIPES["resnet"])
    with pytest.raises(ValueError, match="Expected argument `images` to be a number of images, two or more, or 0"):
        prune_once(backbone, target, images=1)
    with pytest.raises(ValueError, match="Expected argument `pruning_ratio` to be a float in"):
        prune_once(backbone, target, 1.0)
