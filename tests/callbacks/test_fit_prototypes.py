"""An entry of anybody's Trainer gets prototypes: class means of θ⁰'s features of what its backbone is given."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import ModelZoo, MVPCallback, TaskFacts, create_backbone
from lightning_mvp.backbones import features_of
from lightning_mvp.callbacks import fit_prototypes as module
from lightning_mvp.callbacks.batch_labels import find_labels
from lightning_mvp.zoo import ZooEntry
from lightning_mvp.zoo.seen_by import preprocessing_of

from .user import CLASSES, FACTS, RECIPE, VIT_RECIPE, UserModule, callback, loader, make_trainer

IMAGES, LABELS = loader().dataset.tensors
RAW = (IMAGES * 60 + 128).clamp(0, 255).to(torch.uint8)


def on_device(raw: Tensor, mean: float = 0.5) -> Tensor:
    return (raw.float() / 255 - mean) / 0.25


def expected(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    features = features_of(net, images)
    return torch.stack([features[labels == label].mean(0) for label in labels.unique()])


def entry_of(folder: Path, user: L.LightningModule, batches: Any, max_steps: int = 12, **options: Any) -> ZooEntry:
    mvp = callback(**{"head": "classifier", "task": FACTS, "zoo": folder, **options})
    make_trainer(mvp, max_steps=max_steps).fit(user, batches)
    zoo = ModelZoo(folder)
    return zoo[next(name for name in zoo.names if name.startswith(mvp.task.name))]


@dataclass
class Pair:
    images: Tensor
    labels: Tensor


class Anything(UserModule):
    """Makes images and labels of a batch by a function, and asks its backbone for features by keyword."""

    def __init__(self, parts: Callable[[Any], tuple[Tensor, Tensor]], backbone: nn.Module | None = None) -> None:
        super().__init__(backbone)
        self.parts = parts

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
        images, labels = self.parts(batch)
        return F.cross_entropy(self.classifier(self.net(x=images)), labels)


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": (
        lambda raw, x, y: {"id": y + 90, "pixels": raw, "label": y},
        lambda b: (on_device(b["pixels"]), b["label"]),
    ),
    "uint8": (lambda raw, x, y: (raw, y), lambda b: (on_device(b[0]), b[1])),
    "triple": (lambda raw, x, y: (x, y, torch.zeros(1)), lambda b: b[:2]),
    "nested": (lambda raw, x, y: (y[:, None], {"views": [x, x]}), lambda b: (b[1]["views"][0], b[0][:, 0])),
    "dataclass": (lambda raw, x, y: Pair(x, y), lambda b: (b.images, b.labels)),
    "one-hot": (lambda raw, x, y: (x, F.one_hot(y, 3).float()), lambda b: b),
    "unknown": (lambda raw, x, y: (x, torch.where(torch.arange(6) > 2, y, -100)), lambda b: b),
    "resized": (lambda raw, x, y: (x.repeat_interleave(2, 3), y), lambda b: (b[0][..., ::2], b[1])),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_whatever_the_module_makes_of_a_batch_its_backbones_images_give_prototypes(kind: str, zoo: Path):
    made, parts = BATCHES[kind]
    user = Anything(parts, create_backbone(VIT_RECIPE) if kind == "resized" else None)
    user.net.forward = _by_keyword(user.net)  # type: ignore[method-assign]
    theta0 = copy.deepcopy(user.net)
    batches = [made(RAW[i : i + 6], IMAGES[i : i + 6], LABELS[i : i + 6]) for i in range(0, 72, 6)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*prototypes")
        entry = entry_of(zoo, user, DataLoader(batches, batch_size=None, collate_fn=_same), head=None)
    images = on_device(RAW) if kind in ("dict", "uint8") else IMAGES
    known = torch.arange(72) % 6 > 2 if kind == "unknown" else torch.ones(72, dtype=torch.bool)
    assert entry.prototypes is not None
    np.testing.assert_allclose(entry.prototypes, expected(theta0, images[known], LABELS[known]), rtol=1e-4, atol=1e-5)


def _same(batch: Any) -> Any:
    return batch


def _by_keyword(net: nn.Module) -> Callable[..., Tensor]:
    return type(net).forward.__get__(net)


def test_labels_are_found_where_all_batches_have_some():
    y = torch.tensor([0, 2, 1])
    assert list(find_labels((torch.arange(3), y), 3, 3)) == ["0", "1"]
    assert list(find_labels({"index": torch.arange(3), "fine": y, "label_id": y}, 3, 3)) == [
        "label_id",
        "index",
        "fine",
    ]
    assert find_labels([y + 1, y.float() / 2, torch.zeros(4, 3), torch.zeros(3, 3) + 0.5, "red"], 3, 3) == {}
    assert list(find_labels([torch.zeros(3), torch.eye(3)], 3, 3)) == ["1"]
    assert find_labels([torch.tensor([1.0, 0.0, 1.0])], 3, 2)["0"].tolist() == [1, 0, 1]


def test_what_looked_like_labels_and_is_none_is_given_up(zoo: Path):
    batches = [(IMAGES[i : i + 6], torch.arange(i, i + 6) // 5, LABELS[i : i + 6]) for i in range(0, 72, 6)]
    user = Anything(lambda batch: (batch[0], batch[2]))
    theta0 = copy.deepcopy(user.net)
    with pytest.warns(UserWarning, match="Several parts of a batch could be the classes.*: 1, 2. 1 is taken"):
        entry = entry_of(zoo, user, DataLoader(batches, batch_size=None))
    first = next(place for place, batch in enumerate(batches) if batch[1].max() > 2) * 6
    np.testing.assert_allclose(entry.prototypes, expected(theta0, IMAGES[first:], LABELS[first:]), rtol=1e-4, atol=1e-5)


def test_classes_that_no_step_has_shown_are_looked_for_afterwards_and_train_nothing(zoo: Path):
    order = LABELS.argsort(stable=True)
    users = [UserModule(), UserModule()]
    for folder, user in ((zoo, users[0]), (None, users[1])):
        options = {"task": FACTS, "zoo": folder} if folder else {}
        mvp = callback(head="classifier", rounds=1, **options)
        make_trainer(mvp, max_steps=3).fit(user, DataLoader(TensorDataset(IMAGES[order], LABELS[order]), 6))
    for one, other in zip(users[0].state_dict().values(), users[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    made = ModelZoo(zoo)
    seen = torch.cat([order[LABELS[order] == label][:count] for label, count in ((0, 18), (1, 24), (2, 6))])
    found = made[made.names[0]].prototypes
    np.testing.assert_allclose(found, expected(create(), IMAGES[seen], LABELS[seen]), rtol=1e-4, atol=1e-5)


def create() -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(RECIPE)


def test_more_classes_than_images_of_five_hundred_have_two_images_each(zoo: Path):
    many = TaskFacts("many", tuple(f"class {place}" for place in range(600)), 16, FACTS.mean, FACTS.std)
    labels = torch.arange(1800) % 600
    images = torch.randn(1800, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    user = UserModule(head=nn.Linear(16, 600))
    theta0 = copy.deepcopy(user.net)
    seen: list[int] = []
    features = module.features_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "features_of", lambda net, x, n: (seen.append(len(x)), features(net, x, n))[1])
        batches = DataLoader(TensorDataset(images, labels), 100)
        entry = entry_of(zoo, user, batches, max_steps=3, rounds=1, task=many)
    assert entry.prototypes is not None
    np.testing.assert_allclose(entry.prototypes[0], features_of(theta0, images[:1])[0], rtol=1e-3, atol=1e-4)
    assert sum(seen) == 600, "no more are read on for than are needed"


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_a_loader_of_prototypes_goes_first_and_changes_no_step(kind: str, zoo: Path, tmp_path: Path):
    users = [UserModule(), UserModule()]
    theta0 = copy.deepcopy(users[0].net)
    given = DataLoader(TensorDataset(RAW if kind == "uint8" else IMAGES, LABELS), 10, shuffle=True)
    shuffled = DataLoader(loader().dataset, 6, shuffle=True)
    entries = []
    for folder, user, own in ((zoo, users[0], given), (tmp_path / "other", users[1], None)):
        torch.manual_seed(4)
        entries.append(entry_of(folder, user, shuffled, prototype_loader=own))
    images = on_device(RAW) if kind == "uint8" else IMAGES
    np.testing.assert_allclose(entries[0].prototypes, expected(theta0, images, LABELS), rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(entries[0].weights[name], value) for name, value in entries[1].weights.items())


@pytest.mark.parametrize(
    ("batch", "options", "match"),
    [
        ((IMAGES[:6], torch.rand(6)), {}, r"no tensor of their classes: integers \(6,\) from 0 to 2"),
        (
            (IMAGES[:6], LABELS[:6]),
            {"prototype_loader": [{"image": IMAGES}]},
            "to give .images, class indices., .*dict",
        ),
        ((IMAGES[:6], LABELS[:6]), {"prototype_loader": [(IMAGES[:1], LABELS[:1])]}, "of 2 of 3 classes: green, blue"),
        ((IMAGES[:6], LABELS[:6]), {"prototype_loader": [(IMAGES[:1, :1], LABELS[:1])]}, "channels"),
    ],
)
def test_why_there_are_no_prototypes_is_said_at_the_start(
    batch: Any, options: Any, match: str, zoo: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[int] = []
    mvp = callback(head="classifier", task=FACTS, zoo=zoo, **options)
    trainer = make_trainer(mvp)
    warn = module.rank_zero_warn
    monkeypatch.setattr(module, "rank_zero_warn", lambda text: (steps.append(trainer.global_step), warn(text)))
    with pytest.warns(UserWarning, match=f"will have no prototypes.*{match}"):
        trainer.fit(Anything(lambda batch: (batch[0], LABELS[:6])), DataLoader([batch] * 12, batch_size=None))
    assert len(steps) == 1
    assert steps[0] <= 1
    made = ModelZoo(zoo)
    assert made[made.names[0]].prototypes is None
    with pytest.raises(ValueError, match="`prototype_loader` to be an iterable"):
        MVPCallback(prototype_loader=3)  # type: ignore[arg-type]


def test_a_task_of_other_normalisation_gets_prototypes_in_the_zoos(zoo: Path):
    entry_of(zoo, UserModule(), loader())
    other = TaskFacts("other", CLASSES, 16, (0.25, 0.5, 0.75), (0.5, 0.25, 0.125))
    own = (RAW / 255 - torch.tensor(other.mean)[:, None, None]) / torch.tensor(other.std)[:, None, None]
    user = UserModule()
    theta0 = copy.deepcopy(user.net)
    entry = entry_of(zoo, user, DataLoader(TensorDataset(own, LABELS), 6), task=other)
    assert entry.prototypes_seen_by == preprocessing_of(FACTS.to_dict()) == ModelZoo(zoo).preprocessing
    np.testing.assert_allclose(entry.prototypes, expected(theta0, on_device(RAW), LABELS), rtol=1e-3, atol=1e-4)
    cropped = TaskFacts("cropped", CLASSES, 16, other.mean, other.std, crop=0.9)
    entry = entry_of(zoo, UserModule(), DataLoader(TensorDataset(own, LABELS), 6), task=cropped)
    assert entry.prototypes_seen_by is None, "what can't be converted keeps its own"
    np.testing.assert_allclose(entry.prototypes, expected(theta0, own, LABELS), rtol=1e-3, atol=1e-4)
