"""Pruning by cutting is what MVPCallback does by zeroing: the same scores, masks, rates and momentum."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mvp import ImageData, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone, find_groups
from lightning_mvp.backbones import random_masks, shrink
from lightning_mvp.backbones.regroup import groups_left
from lightning_mvp.fitting.fit import EntryFacts, fit_quietly
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.training.filling import prune_into_zoo
from lightning_mvp.training.rounds import OwnCutter, endless, make_fabric, prune_and_cut
from lightning_mvp.voting import voted_backbone
from lightning_mvp.voting.class_means import task_means
from lightning_mvp.zoo.new_entry import ZooTarget

from ..backbones.recipes import recipe
from ..nursery import Nursery
from .conftest import RECIPES, task

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
STEPS = 10
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
Make = Callable[..., tuple[TaskModule, TaskDataModule]]


@pytest.fixture
def make(data: ImageData) -> Make:
    """θ⁰ with its head, and the data of a task."""

    def make(kind: str = "resnet", **options: Any) -> tuple[TaskModule, TaskDataModule]:
        torch.manual_seed(0)
        datamodule = task(data, "abc", "first")
        module = TaskModule.for_task(create_backbone(RECIPES[kind]), datamodule.facts, **options)
        module.initialise_head(datamodule)
        return module, datamodule

    return make


def cut_by_ours(
    module: TaskModule,
    data: TaskDataModule,
    settings: PruningSettings,
    steps: int = STEPS,
    cutter_class: type[OwnCutter] = OwnCutter,
    **options: Any,
) -> tuple[TaskModule, OwnCutter]:
    example = module.example_input_array
    assert isinstance(example, Tensor)
    prunable = find_prunable(module.backbone, (example,), settings)
    cutter = cutter_class(prunable.groups, prunable.cost, settings)
    return prune_and_cut(module, data, cutter, settings, steps, **options), cutter


@pytest.mark.parametrize(
    ("kind", "pruning", "options", "clip"),
    [
        ("resnet", {}, {"learning_rate": 0.01}, 1.0),
        ("resnet", {}, {"learning_rate": 0.01}, None),
        ("resnet", {"warmup_steps": 2, "scope": "global", "ratio_of": "macs"}, {"learning_rate": 0.01}, 1.0),
        ("resnet", {"criterion": "magnitude"}, {"learning_rate": 0.01, "schedule": "constant"}, 1.0),
        ("resnet", {"criterion": "random", "exclude": "residual"}, {"learning_rate": 0.01}, 1.0),
        ("resnet", {}, ADAMW, 1.0),
        ("vit", {}, ADAMW, 1.0),
    ],
)
def test_cutting_and_zeroing_give_the_same_masks_and_weights(
    make: Make, kind: str, pruning: dict[str, Any], options: dict[str, Any], clip: float | None
) -> None:
    settings = PruningSettings(**{"pruning_ratio": 0.7, "rounds": 3, **pruning})
    zeroed, data = make(kind, **options)
    callback = MVPCallback(**{"pruning_ratio": 0.7, "rounds": 3, **pruning}, head="head")
    fit_quietly(zeroed, data, STEPS, [callback], precision="32-true", gradient_clip_val=clip)
    cut, cutter = cut_by_ours(*make(kind, **options), settings, clip=clip, precision="32-true")

    assert callback.masks == cutter.masks
    for name, importance in callback.importance.items():
        torch.testing.assert_close(cutter.importance[name], importance, rtol=1e-2, atol=1e-3)
    small = callback.small_model().state_dict()
    for name, tensor in cut.to_torch().state_dict().items():
        torch.testing.assert_close(tensor, small[name], rtol=1e-3, atol=1e-4)


def timm(model: str) -> dict[str, Any]:
    return {"model": model, "arguments": {"num_classes": 0}, "input_size": 32, "in_chans": 3}


@pytest.mark.parametrize(
    "made_by", [recipe("resnet_mini"), recipe("vit_mini"), timm("mobilenetv3_small_050"), timm("regnetx_002")]
)
def test_groups_of_what_is_left_are_those_that_would_be_found(made_by: dict[str, Any]) -> None:
    backbone = create_backbone(made_by).eval()
    example = torch.zeros(2, 3, 32, 32)
    groups = find_groups(backbone, example)
    masks = random_masks(groups, 0.5, seed=1)
    small = shrink(backbone, groups, masks)
    found = find_groups(small, example, check=False)
    left = groups_left(groups, masks, backbone, backbone(example).shape[1])
    assert left.sizes == found.sizes
    assert left.layout.keys() == found.layout.keys()
    for one, other in zip(left, found, strict=True):
        for mine, theirs in zip(one.members, other.members, strict=True):
            assert (mine.tensor, mine.axis, mine.role, mine.gate) == (
                theirs.tensor,
                theirs.axis,
                theirs.role,
                theirs.gate,
            )
            assert (mine.index == theirs.index).all()
        assert (one.feature_index is None) == (other.feature_index is None)
        assert one.feature_index is None or (one.feature_index == other.feature_index).all()


def test_an_entry_is_the_one_that_a_fit_makes(make: Make, tmp_path: Path) -> None:
    zoos, entries = {}, {}
    for way in ("zeroed", "cut"):
        module, data = make(learning_rate=0.01)
        options: dict[str, Any] = {"pruning_ratio": 0.7, "rounds": 2, "exclude": "layer1.*"}
        settings, target = PruningSettings(**options), ZooTarget(tmp_path / way, data.facts)
        if way == "zeroed":
            pruning = MVPCallback(**options, head="head", task=data.facts, zoo=tmp_path / way, training={})
            callbacks = [EntryFacts(pruning, data), pruning]
            fit_quietly(module, data, STEPS, callbacks, precision="32-true", gradient_clip_val=1.0)
        else:
            run = prune_into_zoo(module, data, target, settings, STEPS, make_fabric(precision="32-true"), clip=1.0)
            assert "whole backbone" in str([list(column.cells) for column in run.table().columns])
        zoos[way] = ModelZoo(tmp_path / way)
        (name,) = zoos[way]
        entries[way] = zoos[way][name]
    zeroed, cut = entries["zeroed"], entries["cut"]
    assert (cut.name, cut.facts, cut.config) == (zeroed.name, zeroed.facts, zeroed.config)
    assert cut.info.keys() - zeroed.info.keys() == {"cut_between_rounds"}
    assert zeroed.info.keys() <= cut.info.keys()
    assert cut.info["kept"] == zeroed.info["kept"]
    assert cut.info["val_accuracy"] == pytest.approx(zeroed.info["val_accuracy"], abs=0.1)
    for part in ("masks", "weights", "importance", "head"):
        one, other = getattr(zeroed, part), getattr(cut, part)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.dtype == other[key].dtype
            torch.testing.assert_close(torch.as_tensor(other[key]), torch.as_tensor(value), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(torch.as_tensor(cut.prototypes), torch.as_tensor(zeroed.prototypes))
    assert zoos["cut"].fingerprint == zoos["zeroed"].fingerprint
    voted, _ = voted_backbone(zoos["cut"], make()[1].train_dataloader(), neighbours=1)
    assert voted(torch.zeros(2, 3, 16, 16)).ndim == 2

    with pytest.raises(FileExistsError, match="already has an entry"):
        prune_into_zoo(make(learning_rate=0.01)[0], data, target, settings, STEPS, make_fabric(), clip=1.0)


def test_bfloat16_trains_and_prunes(make: Make) -> None:
    small, cutter = cut_by_ours(*make(), PruningSettings(pruning_ratio=0.5, rounds=2), precision="bf16-mixed")
    assert cutter.masks.pruning_ratio == pytest.approx(0.5, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in small.parameters())


def test_a_loss_that_is_not_finite_stops_it(make: Make, tmp_path: Path) -> None:
    module, data = make()
    with torch.no_grad():
        module.head.bias[0] = torch.nan
    settings, target = PruningSettings(pruning_ratio=0.5, rounds=2), ZooTarget(tmp_path / "zoo", data.facts)
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        prune_into_zoo(module, data, target, settings, STEPS, make_fabric(precision="32-true"))
    assert len(ModelZoo(tmp_path / "zoo")) == 0


def test_a_loss_that_fails_right_after_a_round_says_so(make: Make) -> None:
    class Spoilt(OwnCutter):
        def cut(self, module: TaskModule, *args: Any) -> TaskModule:
            smaller = super().cut(module, *args)
            smaller.head.bias.data[0] = torch.nan
            return smaller

    settings = PruningSettings(pruning_ratio=0.5, rounds=2, steps_per_round=2)
    with pytest.raises(FloatingPointError, match=r"at step 3\. .* right after round 1 of pruning, 1 step.*more rounds"):
        cut_by_ours(*make(), settings, cutter_class=Spoilt)


def test_a_schedule_that_does_not_fit_is_refused(make: Make, tmp_path: Path) -> None:
    module, data = make()
    settings = PruningSettings(pruning_ratio=0.5, rounds=4, steps_per_round=4)
    with pytest.raises(ValueError, match="16"):
        prune_into_zoo(module, data, ZooTarget(tmp_path / "zoo", data.facts), settings, STEPS, make_fabric())
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "16-mixed"}, "argument `precision` to be one of"),
        ({"strategy": "fsdp"}, "argument `strategy` to be 'auto' or 'ddp'"),
    ],
)
def test_what_a_loop_of_ours_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_fabric(**options)


def test_ranks_see_other_images(make: Make) -> None:
    _, data = make()
    (first, _), (second, _) = (next(endless(data, rank, 2)) for rank in (0, 1))
    assert not torch.equal(first, second)


def test_storage_is_checked_at_once(make: Make, tmp_path: Path) -> None:
    facts = replace(make()[1].facts, name="other")
    with pytest.raises(ValueError, match="argument `storage` to be one of 'float32', 'bfloat16', but got 'float16'"):
        MVPCallback(task=facts, zoo=tmp_path, storage="float16")  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_ranks_cut_alike_and_fail_alike(nursery: Nursery, tmp_path: Path) -> None:
    ran = nursery.run("tests.training.cut_ddp_run:main", tmp_path, ranks=2, limit=240)
    assert ran.well, ran.text
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["world_size"] == 2
    assert first["masks"] == second["masks"] == first["zeroed"]
    assert first["parameters"] == second["parameters"]
    assert first["batches"] != second["batches"]
    # Each rank saw half of the images; the result is one, and that of one process but for rounding.
    assert all(first[said] == second[said] for said in ("head", "accuracies", "prototypes"))
    from .cut_ddp_run import datamodule, made  # which imports this file

    alone, data = made(), datamodule()
    torch.testing.assert_close(torch.tensor(first["head"]), alone.head.weight.detach(), rtol=1e-4, atol=1e-5)
    assert first["accuracies"] == [alone.accuracy_in(data, "val"), alone.accuracy_in(data, "test")]
    own = task_means(alone.backbone, data, data.facts).means()
    assert own is not None
    torch.testing.assert_close(torch.tensor(first["prototypes"]), own, rtol=1e-4, atol=1e-5)
    for said in (first, second):
        assert "round 1 differ between ranks: [1] disagree with rank 0" in said["problem"]
    assert len(ModelZoo(tmp_path / "zoo")) == 1
