from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp.voting import reading
from lightning_mvp.voting.reading import class_names, read_sample


def loader(labels: Tensor, batch_size: int = 4, **options: Any) -> DataLoader:
    """One-pixel images that say their label and place."""
    images = torch.stack([labels.reshape(len(labels), -1)[:, 0], torch.arange(len(labels))], 1).float()
    return DataLoader(TensorDataset(images[:, :, None, None], labels), batch_size, **options)


def quietly(*args: Any, **options: Any) -> tuple[reading.Sample, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample = read_sample(*args, **options)
    return sample, [str(warning.message) for warning in caught]


def test_a_shuffled_loader_is_read_as_far_as_asked_and_no_further() -> None:
    shuffled = torch.arange(400)[torch.randperm(400, generator=torch.Generator().manual_seed(0))] % 5
    for labels in (shuffled, shuffled[:, None], torch.nn.functional.one_hot(shuffled)):
        sample, said = quietly(loader(labels), batches=20, wanted=10, classes=list("abcde"))
        assert not said
        assert sample.images[:, 1, 0, 0].tolist() == list(range(80))
    rare = torch.zeros(400, dtype=torch.long)
    rare[[37, 190, 260]] = 1  # so rare that runs are long
    assert not quietly(loader(rare), batches=50, wanted=10)[1]


def test_a_sorted_loader_is_read_on_and_said() -> None:
    labels = torch.arange(5).repeat_interleave(80)
    sample, said = quietly(loader(labels), batches=10, wanted=50)
    assert len(sample.labels) == 50
    assert sample.labels.bincount().tolist() == [10] * 5
    assert torch.equal(sample.images[:, 0, 0, 0], sample.labels.float())
    places = sample.images[sample.labels == 3, 1, 0, 0]
    assert places.std() > 10, "drawn from all the images of a class"
    assert len(said) == 1
    assert "first 10 batches hold class 0 only. 100 batches were read, with classes 0, 1, 2, 3, 4;" in said[0]
    assert "shuffle=True" in said[0]
    again, _ = quietly(loader(labels), batches=10, wanted=50)
    assert torch.equal(again.images, sample.images)


def test_with_names_reading_ends_when_each_class_has_its_share() -> None:
    labels = torch.cat([torch.arange(4).repeat_interleave(80), torch.zeros(4000, dtype=torch.long)])
    sample, said = quietly(loader(labels), batches=10, wanted=40, classes=list("abcd"))
    assert sample.labels.bincount().tolist() == [10] * 4
    assert "'a' only. 63 batches were read" in said[0]


def test_classes_behind_the_limit_are_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BATCHES", 30)
    labels = torch.arange(3).repeat_interleave(60)
    sample, said = quietly(loader(labels), batches=10, wanted=30, classes=["cat", "dog", "horse"])
    assert sample.missing == ("horse",)
    assert "30 batches were read, the most that are, with classes 'cat', 'dog'; any other was not seen" in said[0]
    assert said[1] == "No image of 1 class was seen in the 30 batches that were read of `loader`: horse."
    _, said = quietly(loader(labels), batches=10, wanted=30)
    assert len(said) == 1, "without names nobody knows what is missing"
    assert "classes 0, 1; any other was not seen" in said[0]


def test_a_loader_of_one_class_without_end_is_left_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BATCHES", 20)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.zeros(2, 3, 1, 1), torch.ones(2, dtype=torch.long)

    sample, said = quietly(endless(), batches=5, wanted=10)
    assert "class 1; any other was not seen" in said[0]
    assert len(sample.labels) == 10


def test_sorted_multi_hot_labels_are_read_on() -> None:
    labels = torch.eye(3).repeat_interleave(80, 0)
    sample, said = quietly(loader(labels), batches=10, wanted=30)
    assert sorted(sample.labels.sum(0).tolist()) == [13, 13, 14]
    assert "class 0 only" in said[0]


def test_a_loader_read_whole_is_no_trouble_in_any_order() -> None:
    sample, said = quietly(loader(torch.arange(3).repeat_interleave(20)), batches=50, wanted=10)
    assert not said
    assert len(sample.labels) == 60
    _, said = quietly(loader(torch.tensor([0, 1] * 20)), batches=50, wanted=10, classes=["a", "b", "c"])
    assert said == ["No image of 1 class was seen in the 10 batches that were read of `loader`: c."]


def test_255_far_above_the_other_labels_is_said() -> None:
    _, said = quietly(loader(torch.tensor([0, 1, 255] * 20)), batches=50, wanted=10)
    assert "255 far above the others: it counts as a class" in said[0]
    assert not quietly(loader(torch.arange(256).repeat(2)), batches=200, wanted=10)[1]


def test_labels_that_decide_nothing_may_be_anything() -> None:
    values = torch.randn(40)
    sample, said = quietly(loader(values), batches=5, wanted=10, labels_matter=False)
    assert len(sample.images) == 20
    assert not said
    with pytest.raises(ValueError, match="regression"):
        read_sample(loader(values), batches=5, wanted=10)


def test_what_is_no_loader_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`loader` to be a TaskDataModule.*got a SimpleNamespace.*train_dataloader"):
        read_sample(SimpleNamespace(), batches=5, wanted=10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tuple of str.*classes\.index"):
        read_sample([(torch.zeros(2, 3, 1, 1), ("cat", "dog"))], batches=5, wanted=10)
    with pytest.raises(ValueError, match="at least one batch"):
        read_sample([(torch.zeros(0, 3, 1, 1), torch.zeros(0))], batches=5, wanted=10)


def test_names_are_the_data_sets_own_unless_labels_are_changed() -> None:
    def of(**attributes: Any) -> tuple[str, ...] | None:
        return class_names(SimpleNamespace(dataset=SimpleNamespace(**attributes)))

    assert of(classes=["a", "b"]) == of(classes=["a", "b"], target_transform=None) == ("a", "b")
    assert of(classes=["a", "b"], target_transform=str) is None
    assert of(classes=2) is None
    assert class_names([]) is None
