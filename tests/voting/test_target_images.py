from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_mvp import TaskDataModule
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.tasks.data import ImageData, Part
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting import target as target_file
from lightning_mvp.voting import target_images as images_file
from lightning_mvp.voting.target import Target
from lightning_mvp.voting.target_images import StreamedImages, equal_batches, facts_of
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import ModelZoo

from .conftest import World
from .test_voted import Module, entries, made  # noqa: F401 (fixtures)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_batches_of_any_size_become_equal_ones(sizes: list[int], size: int) -> None:
    count = sum(sizes)
    batches = torch.arange(count).split(sizes)
    expected = torch.arange(count).tensor_split(-(-count // size))
    got = list(equal_batches(batches, size, count))
    assert [part.tolist() for part in got] == [part.tolist() for part in expected]
    unknown = list(equal_batches(batches, size))
    assert torch.equal(torch.cat(unknown), torch.arange(sum(map(len, unknown))))
    assert count - sum(map(len, unknown)) <= size // 2
    assert all(len(part) == size for part in unknown[:-1])


class Counted:
    """Batches, and how often they were read."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        return iter(self.batches)


@pytest.mark.parametrize("floating", [False, True])
def test_large_images_are_held_as_uint8_or_read_again(
    world: World,
    made: ModelZoo,  # noqa: F811
    floating: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Module(world, "abe")
    options: dict[str, Any] = {"neighbours": 3, "reconstruct": 40}
    small, _ = voted_backbone(made, module, **options)
    images, labels = module.images, module.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    seen = preprocess(images, module.facts) if floating else images
    loader = Counted([(seen[part], labels[part]) for part in order.split(8)])
    _, held = voted_backbone(made, loader, **options)
    assert loader.passes == 1
    monkeypatch.setattr(images_file, "HELD", 0)
    monkeypatch.setattr(target_file, "HELD", 0)
    again, _ = voted_backbone(made, module, **options)
    assert fingerprint(again.state_dict()) == fingerprint(small.state_dict())  # of their own size, nothing is rounded
    streamed, report = voted_backbone(made, loader, scoring_images=18, **options)
    assert loader.passes > 3
    assert {n.name for n in report.neighbours} == {n.name for n in held.neighbours}
    assert torch.isfinite(streamed(preprocess(images[:2], module.facts))).all()
    target = Target.read(loader, 18, 3, 0)
    assert isinstance(target.images, StreamedImages)
    assert len(target.labels) == 18
    first = torch.cat(list(target.images.batches(module.facts.to_dict(), 5)))
    assert torch.equal(first, preprocess(images, module.facts)[order][:24])


def test_an_image_of_another_size_is_rounded_by_half_a_level_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    part = Part(torch.randint(256, (6, 3, 24, 24), generator=generator, dtype=torch.uint8), torch.arange(6) % 2)
    data = TaskDataModule(ImageData("noise", ("a", "b"), part, part, part))
    facts = {**data.facts.to_dict(), "input_size": 16, "crop": 0.8}
    exact = preprocess(part.images, facts_of(facts))
    for held, most in ((2**26, 0.0), (0, 0.51 / 255 / min(data.facts.std))):
        monkeypatch.setattr(images_file, "HELD", held)
        images = images_file.PartImages(data, part, hold=True)
        assert (torch.cat(list(images.batches(facts, 4))) - exact).abs().max() <= most


def test_a_generator_is_read_once_and_no_further_than_needed(
    world: World,
    made: ModelZoo,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = world.of(*"abe")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(target_file, "HELD", 0)
    batches = ((images[part], labels[part]) for part in order.split(8))
    small, _ = voted_backbone(made, batches, neighbours=2, scoring_images=24)
    assert torch.isfinite(next(iter(small.state_dict().values()))).all()
    assert next(batches, None) is not None
