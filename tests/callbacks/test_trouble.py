"""Ordinary trouble with data and losses: it is named, and the zoo stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import ImageData, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone

from .user import (
    CLASSES,
    FACTS,
    RECIPE,
    UserModule,
    callback,
    coloured,
    fit,
    loader,
    make_trainer,
)


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
