from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.partition import ImageData, Part, drop_duplicates, image_hashes, stratified_split


def pixels(*values: int) -> Part:
    return Part(torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1), torch.zeros(len(values), dtype=torch.int64))


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 99)
)
def test_split_is_stratified_and_complete(labels: list[int], fraction: float, seed: int) -> None:
    tensor = torch.tensor(labels)
    kept, drawn = stratified_split(tensor, fraction, seed)
    assert sorted(torch.cat([kept, drawn]).tolist()) == list(range(len(labels)))
    for label in set(labels):
        n, taken = labels.count(label), int((tensor[drawn] == label).sum())
        assert taken == min(max(int(fraction * n + 0.5), 1), n - 1)


def test_split_of_zero_draws_nothing_and_follows_the_seed() -> None:
    labels = torch.zeros(20, dtype=torch.int64)
    assert len(stratified_split(labels, 0.0, 0)[1]) == 0
    assert torch.equal(stratified_split(labels, 0.5, 1)[1], stratified_split(labels, 0.5, 1)[1])
    assert not torch.equal(stratified_split(labels, 0.5, 1)[1], stratified_split(labels, 0.5, 2)[1])
    with pytest.raises(ValueError, match="`fraction`"):
        stratified_split(labels, 1.0, 0)


def test_duplicates_leave_train_for_val_and_both_for_test() -> None:
    train, val = drop_duplicates(pixels(1, 2, 3, 5, 1), pixels(2, 4), pixels(3, 4))
    assert train.images.flatten().tolist() == [1, 5, 1]
    assert val.images.flatten().tolist() == [2]


def test_hash_sees_every_byte() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[1, 0, 1, 1] = 1
    first, second, third = image_hashes(images)
    assert first == third != second


def test_moments_are_those_of_train() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 2, 4, 4), dtype=torch.uint8, generator=generator)
    part = Part(images, torch.zeros(50, dtype=torch.int64))
    data = ImageData("toy", ("a",), part, part, part)
    floats = images.double().transpose(0, 1).flatten(1) / 255
    assert data.mean == pytest.approx(floats.mean(1).tolist(), rel=1e-12)
    assert data.std == pytest.approx(floats.std(1, correction=0).tolist(), rel=1e-9)


def test_bad_parts_are_refused() -> None:
    good = pixels(1, 2)
    with pytest.raises(ValueError, match="uint8"):
        Part(good.images.float(), good.labels)
    with pytest.raises(ValueError, match="int64"):
        Part(good.images, good.labels[:1])
    with pytest.raises(ValueError, match="train labels"):
        ImageData("toy", ("a",), Part(good.images, good.labels + 1), good, good)
    with pytest.raises(ValueError, match="square"):
        ImageData("toy", ("a",), Part(torch.zeros(2, 1, 2, 3, dtype=torch.uint8), good.labels), good, good)
    with pytest.raises(ValueError, match="Set `image_size`"):
        ImageData("toy", ("a",), good, good, Part(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), good.labels))


def test_images_may_be_normalised_as_a_backbones_weights_want_it() -> None:
    part = Part(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    data = ImageData("toy", ("a",), part, part, part, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert ImageData("toy", ("a",), part, part, part, std=(0.2, 0.2, 0.2)).mean == (0, 0, 0)
    with pytest.raises(ValueError, match=r"Expected argument `mean` to be 3 numbers in \[0, 1\].* but got \[0.5\]"):
        ImageData("toy", ("a",), part, part, part, mean=(0.5,))
    with pytest.raises(ValueError, match=r"`std` to be 3 numbers .*above 0, but got \[0.0, 0.5, 0.5\]"):
        ImageData("toy", ("a",), part, part, part, std=(0.0, 0.5, 0.5))


def test_given_moments_reach_every_task_of_a_data_set() -> None:
    options = {"characters": "ABDE", "per_class_train": 3, "per_class_val": 1, "per_class_test": 1}
    task = TaskDataModule("glyphs", data_options={**options, "mean": [0.5] * 3, "std": [0.25] * 3})
    assert (task.facts.mean, task.facts.std) == ((0.5,) * 3, (0.25,) * 3)
    assert TaskDataModule("glyphs", data_options=options).facts.mean != (0.5,) * 3
