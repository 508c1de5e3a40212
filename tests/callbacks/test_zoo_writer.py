"""The zoo entry that a fit leaves: whole and right when pruning was completed, and otherwise nothing at all."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
from torch import nn

from lightning_mvp import ModelZoo, TaskFacts, create_backbone, find_groups, voted_backbone
from lightning_mvp.apps import zoo as mvp_zoo
from lightning_mvp.backbones import features_of
from lightning_mvp.zoo.new_entry import ZooTarget
from lightning_mvp.zoo.rebuild import dense_backbone, rebuild

from .user import CLASSES, EXAMPLE, FACTS, RECIPE, VIT_RECIPE, UserModule, callback, content, fit, loader

Entries = Callable[[], int]


def facts(name: str, classes: tuple[str, ...] = CLASSES) -> TaskFacts:
    return TaskFacts(name, classes, FACTS.input_size, FACTS.mean, FACTS.std)


def rebuilt(zoo: ModelZoo, name: str) -> tuple[nn.Module, nn.Module | None]:
    dense = dense_backbone(zoo)
    return rebuild(zoo[name], dense, find_groups(dense, EXAMPLE))


@pytest.mark.parametrize("recipe", [RECIPE, VIT_RECIPE], ids=["resnet", "vit"])
def test_the_entry_is_the_pruned_model(zoo: Path, recipe: Any):
    mvp = callback(head="classifier", task=FACTS, zoo=zoo)
    module = UserModule(create_backbone(recipe))
    theta0 = copy.deepcopy(module.net)
    fit(module, mvp)

    made = ModelZoo(zoo)
    (name,) = made.names
    assert made.verify() == {name: None}
    entry = made[name]
    small, head = rebuilt(made, name)
    assert head is not None
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(small(EXAMPLE)), module(EXAMPLE), rtol=1e-5, atol=1e-5)
    assert {group: mask.tolist() for group, mask in entry.masks.items()} == {
        group: mask.tolist() for group, mask in mvp.masks.items()
    }
    assert all(np.array_equal(value, theta0.state_dict()[key].numpy()) for key, value in made.theta0().items())
    assert entry.config == mvp.config(12)
    assert TaskFacts.from_dict(entry.facts) == FACTS
    assert entry.info["steps"] == 12
    assert entry.info["kept"]["units"] == pytest.approx(1 - mvp.masks.pruning_ratio)

    batches = list(loader())
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    features = features_of(theta0, images)
    expected = torch.stack([features[labels == label].mean(0) for label in range(3)])
    np.testing.assert_allclose(entry.prototypes, expected.numpy(), rtol=1e-4, atol=1e-5)


def bytes_of(value: Any) -> int:
    """Of all tensors and arrays in dictionaries and in objects of ours."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return int(value.nbytes)
    inside = value if isinstance(value, dict) else vars(value) if isinstance(value, (ModelZoo, ZooTarget)) else {}
    return sum(map(bytes_of, inside.values()))


def test_theta0_is_in_memory_once_while_a_model_trains(zoo: Path):
    module, mvp, held = UserModule(), callback(head="classifier", task=FACTS, zoo=zoo), []

    class Look(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            held.append(bytes_of(mvp.zoo))

    fit(module, mvp, Look())
    assert held == [sum(value.nbytes for value in ModelZoo(zoo).theta0().values())]


def test_an_entry_without_head_has_all_groups_and_serves_prototypes(zoo: Path):
    fit(UserModule(), callback(head="classifier", task=facts("with-head"), zoo=zoo))
    mvp = callback(task=facts("without"), zoo=zoo)
    with pytest.warns(UserWarning, match="stays whole"):
        fit(UserModule(), mvp)
    made = ModelZoo(zoo)
    entry = made[next(name for name in made.names if name.startswith("without--"))]
    assert entry.masks["layer3.residual"].all()
    assert not entry.head
    assert entry.prototypes is not None
    raw = [((images * 60 + 128).clamp(0, 255).to(torch.uint8), labels) for images, labels in loader()]
    small, report = voted_backbone(made, raw, neighbours=2, similarity="prototypes")
    assert len(report.neighbours) == 2
    assert torch.isfinite(small(EXAMPLE)).all()


def test_a_classifier_inside_the_backbone_becomes_the_head_and_no_part_of_theta0(zoo: Path):
    torch.manual_seed(3)
    body = timm.create_model("resnet10t", num_classes=3)
    twin = copy.deepcopy(body)
    twin.reset_classifier(3)
    modules = [UserModule(net, head=nn.Identity()) for net in (body, twin)]
    for place, module in enumerate(modules):
        fit(module, callback(task=facts(f"task-{place}"), zoo=zoo, rounds=1), max_steps=2)
    made = ModelZoo(zoo)
    assert len(made) == 2
    assert not any(name.startswith("fc.") for name in made.theta0())
    for name, module in zip(made.names, modules, strict=True):
        small, head = rebuilt(made, name)
        assert head is not None
        module.eval()
        with torch.no_grad():
            torch.testing.assert_close(head(small(EXAMPLE)), module(EXAMPLE), rtol=1e-4, atol=1e-4)


def test_classifiers_of_other_class_counts_share_a_zoo(zoo: Path):
    torch.manual_seed(3)
    body = timm.create_model("resnet10t", num_classes=3)
    wide = copy.deepcopy(body)
    wide.reset_classifier(5)
    fit(UserModule(body, head=nn.Identity()), callback(task=facts("three"), zoo=zoo, rounds=1), max_steps=2)
    five = facts("five", ("a", "b", "c", "d", "e"))
    fit(UserModule(wide, head=nn.Identity()), callback(task=five, zoo=zoo, rounds=1), max_steps=2)
    assert len(ModelZoo(zoo)) == 2
    assert ModelZoo(zoo).recipe is not None


@pytest.mark.parametrize("at", [1, 9], ids=["before the last round", "after it"])
def test_a_loss_that_is_nan_stops_with_the_step_and_leaves_the_zoo_as_it_was(zoo: Path, at: int):
    fit(UserModule(), callback(head="classifier", task=FACTS, zoo=zoo))
    before = content(zoo)
    mvp = callback(head="classifier", task=facts("next"), zoo=zoo)
    with pytest.raises(FloatingPointError, match=f"loss is not finite at step {at + 1}.*learning rate"):
        fit(UserModule(spoil_at=at), mvp)
    assert content(zoo) == before


def test_an_interrupt_writes_nothing(zoo: Path, entries: Entries):
    mvp = callback(head="classifier", task=FACTS, zoo=zoo)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(UserModule(interrupt_at=9), mvp)
    assert mvp.finished
    assert entries() == 0


def test_an_exception_after_the_last_round_writes_nothing(zoo: Path, entries: Entries):
    class Break(L.Callback):
        def on_train_end(self, *_: Any) -> None:
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(UserModule(), callback(head="classifier", task=FACTS, zoo=zoo), Break())
    assert entries() == 0


def test_a_fit_that_stops_before_the_last_round_writes_nothing_and_says_so(zoo: Path, entries: Entries):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    with pytest.warns(UserWarning, match=r"2 of 3 rounds.*5 steps.*Nothing was added to the zoo"):
        fit(UserModule(), callback(head="classifier", task=FACTS, zoo=zoo), Stop(), min_epochs=0)
    assert entries() == 0


class Meanwhile(L.Callback):
    """Something happens to the zoo while the model is trained."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self.happens = happens

    def on_train_end(self, *_: Any) -> None:
        self.happens()


def test_a_zoo_that_vanishes_costs_no_training(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    away = tmp_path / "away"
    mvp = callback(head="classifier", task=FACTS, zoo=zoo)
    mvp.info["note"] = "kept"
    with pytest.raises(OSError, match="is gone, so nothing was read or written") as caught:
        fit(UserModule(), mvp, Meanwhile(lambda: zoo.rename(away)), default_root_dir=tmp_path)
    assert not zoo.exists(), "a zoo that is gone is not made anew"
    (kept,) = tmp_path.glob("*.safetensors")
    assert f"`mvp-zoo add {zoo} {kept}` adds it" in str(caught.value)

    away.rename(zoo)
    monkeypatch.setattr(sys, "argv", ["mvp-zoo", "add", str(zoo), str(kept)])
    with pytest.raises(SystemExit, match="0"):
        mvp_zoo.main()
    made = ModelZoo(zoo)
    assert made.verify() == {kept.stem: None}
    assert made[kept.stem].info["note"] == "kept"
    assert {group: mask.tolist() for group, mask in made[kept.stem].masks.items()} == {
        group: mask.tolist() for group, mask in mvp.masks.items()
    }


def test_an_entry_that_was_kept_is_not_added_to_another_zoo(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fit(UserModule(), callback(head="classifier", task=FACTS, zoo=zoo))
    fit(
        UserModule(create_backbone(RECIPE)),
        callback(head="classifier", task=facts("other"), zoo=tmp_path / "b", seed=1),
    )
    one, other = ModelZoo(zoo), ModelZoo(tmp_path / "b")
    assert one.fingerprint != other.fingerprint
    files = [str(zoo / "tasks" / f"{name}.safetensors") for name in one.names]
    monkeypatch.setattr(sys, "argv", ["mvp-zoo", "add", str(other.path), *files])
    with pytest.raises(SystemExit, match="1"):
        mvp_zoo.main()
    assert other.names == ModelZoo(tmp_path / "b").names
    assert len(other) == 1


def test_of_two_jobs_with_the_same_work_the_first_entry_stays(zoo: Path):
    first = callback(head="classifier", task=FACTS, zoo=zoo)
    second = callback(head="classifier", task=FACTS, zoo=zoo)
    with pytest.warns(UserWarning, match="Another job has added colours--.* meanwhile: its entry stays"):
        fit(UserModule(), second, Meanwhile(lambda: fit(UserModule(), first)))
    assert len(ModelZoo(zoo)) == 1


def test_what_else_tells_trainings_apart_is_part_of_the_id(zoo: Path):
    ids = set()
    for training in ({}, {"learning_rate": 0.1}, {"learning_rate": 0.2}):
        mvp = callback(head="classifier", task=FACTS, zoo=zoo, training=training)
        fit(UserModule(), mvp)
        ids |= set(ModelZoo(zoo).names)
        assert mvp.config(12).get("training", {}) == training
    assert len(ids) == 3
