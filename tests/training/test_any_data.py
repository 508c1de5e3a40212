"""LightningDataModules of other people's, with batches of their own form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_mvp import MetaVoteModule, ModelZoo, TaskDataModule, TaskFacts
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.fitting.fit import make_trainer
from lightning_mvp.fitting.growing import start_accuracy
from lightning_mvp.training.batches import LoadedTask
from lightning_mvp.voting import voted_backbone
from lightning_mvp.voting.reading import MOST_BATCHES

ZooOf = Callable[[str], ModelZoo]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}


class Photographs(Dataset):
    """Dicts of a raw image and a multi-hot label: which of three colours it has."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.opened = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.opened += 1
        return {"pixels": self.images[index], "tags": self.labels[index], "name": f"{index}.jpg"}


class Theirs(L.LightningDataModule):
    def __init__(self, task: TaskDataModule) -> None:
        super().__init__()
        self.task, self.asked = task, list[str]()

    def prepare_data(self) -> None:
        self.asked.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.asked.append(f"setup {stage}")
        parts = {"train": self.task.train_images(), "val": self.task.val_images()}
        self.photographs = {
            # The last label goes with the second: two of the classes have two labels.
            name: Photographs(images, torch.cat([F.one_hot(labels, 3), (labels > 0).long()[:, None]], 1))
            for name, (images, labels) in parts.items()
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.photographs["train"], batch_size=12, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.photographs["val"], batch_size=7)

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()


def tagged(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch["pixels"], batch["tags"]


@pytest.fixture
def facts(target: TaskDataModule) -> TaskFacts:
    return TaskFacts("tags", ("red", "green", "blue", "not red"), 16, target.facts.mean, target.facts.std)


def test_dict_batches_with_several_labels_from_the_vote_to_predictions(
    zoo_of: ZooOf, target: TaskDataModule, facts: TaskFacts, tmp_path: Path
):
    data = Theirs(target)
    module = MetaVoteModule.from_zoo(
        zoo_of("resnet"), data, 2, facts=facts, batch_to=tagged, best_of=(1, 2), mimic=1.0, learning_rate=0.01
    )
    assert data.asked == ["prepare_data", "setup fit"]
    assert module.multi_label
    start = start_accuracy(module, data)
    assert start > 0.7
    trainer = make_trainer(8, **QUIET)
    trainer.fit(module, datamodule=data)
    assert {"val_loss", "val_accuracy", "train_loss"} <= trainer.callback_metrics.keys()
    after = module.accuracy_of(data.val_dataloader())
    assert after == module.accuracy_in(data)
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["val_accuracy"] == pytest.approx(after, abs=0.05)
    predicted = torch.cat(trainer.predict(module, datamodule=data))  # type: ignore[arg-type]
    assert predicted.shape == (12, 4)
    assert 0 <= predicted.min() <= predicted.max() <= 1
    right = (predicted > 0.5) == (data.photographs["val"].labels > 0)
    assert right.float().mean() == pytest.approx(after, abs=0.05)

    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = MetaVoteModule.load_from_checkpoint(tmp_path / "module.ckpt", batch_to=tagged, weights_only=True)
    assert loaded.multi_label
    assert loaded.accuracy_in(data) == after
    bare = MetaVoteModule.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert torch.equal(bare.to_torch()[1].weight, module.head.weight)  # what asks for no batch works
    for use in (lambda: bare.accuracy_in(data), lambda: make_trainer(1, **QUIET).validate(bare, datamodule=data)):
        with pytest.raises(ValueError, match=r"`batch_to`, because .* read by tagged.*load_from_checkpoint\(…, batch"):
            use()


def test_pairs_of_class_indices_need_no_function_and_are_predicted_as_classes(zoo_of: ZooOf, target: TaskDataModule):
    class Pairs(Theirs):
        def train_dataloader(self) -> Any:
            return [(batch["pixels"], batch["tags"][:, :3].argmax(1)) for batch in super().train_dataloader()]

        def predict_dataloader(self) -> Any:
            return DataLoader(self.photographs["val"].images, batch_size=7)  # type: ignore[arg-type]

    data = Pairs(target)
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), data, 2, facts=target.facts.to_dict())
    assert not module.multi_label
    assert "multi_label" not in module.hparams
    predicted = torch.cat(make_trainer(1, **QUIET).predict(module, datamodule=data))  # type: ignore[arg-type]
    torch.testing.assert_close(predicted.sum(1), torch.ones(12))
    assert (predicted.argmax(1) == data.photographs["val"].labels[:, :3].argmax(1)).float().mean() > 0.5


def test_no_more_is_read_than_is_needed(zoo_of: ZooOf, target: TaskDataModule):
    data = Theirs(target)
    data.setup("fit")
    images = data.photographs["train"]
    voted_backbone(
        zoo_of("resnet"),
        data.train_dataloader(),
        batch_to=tagged,
        neighbours=2,
        reestimate_batches=2,
        scoring_images=16,
    )
    assert images.opened == 24

    first = next(iter(data.train_dataloader()))
    data.train_dataloader = lambda: itertools.repeat(first)  # type: ignore[method-assign,assignment,return-value]
    task = LoadedTask(data, target.facts, lambda batch: (batch["pixels"], batch["tags"][:, 0]))
    assert sum(len(labels) for _, labels in task.batches("train", 17)) == 17
    assert sum(1 for _ in task.batches("train")) == MOST_BATCHES
    data.val_dataloader = lambda: [Theirs.val_dataloader(data)] * 2  # type: ignore[method-assign,assignment,return-value]
    assert sum(len(labels) for _, labels in task.batches("val")) == 24


def test_a_ridge_head_of_several_labels_says_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200, 4), generator=generator)
    labels[:, 3] = 0  # which no image has
    features = labels.float() @ torch.randn(4, 6, generator=generator) + 0.3 * torch.randn(200, 6, generator=generator)
    logits = ridge_head(features, labels, 4)(features)
    assert ((logits > 0) == (labels > 0)).float().mean() > 0.9
    assert (logits[:, 3] < 0).all()
    with pytest.raises(ValueError, match=r"multi-hot \(n, 5\)"):
        ridge_head(features, labels, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"`facts` to say the classes and the preprocessing of Theirs"),
        ({"facts": "tags", "batch_to": tagged}, r"`facts` to say .* but got 'tags'"),
        ({"facts": 4}, r"`facts`"),
        ({"facts": 0}, r"dict with keys \['pixels', 'tags', 'name'\]"),
        ({"facts": 0, "batch_to": lambda batch: batch["pixels"]}, r"\(images, labels\)"),
        ({"facts": 3, "batch_to": tagged}, r"multi-hot \(n, 3\)"),
    ],
)
def test_what_says_too_little_is_refused(
    options: dict[str, Any], message: str, zoo_of: ZooOf, target: TaskDataModule, facts: TaskFacts
):
    for number, own in ((0, facts), (3, target.facts)):
        if options.get("facts") == number:
            options = {**options, "facts": own}
    with pytest.raises(ValueError, match=message):
        MetaVoteModule.from_zoo(zoo_of("resnet"), Theirs(target), 2, **options)


def test_a_task_of_ours_knows_its_own(zoo_of: ZooOf, target: TaskDataModule):
    for options in ({"facts": target.facts}, {"batch_to": tagged}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` to be None with a TaskDataModule"):
            MetaVoteModule.from_zoo(zoo_of("resnet"), target, 2, **options)
