"""Timing takes turns and changes nothing; memory is that of the model asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.measure import ROUNDS, Spread, alternate, compare, training_step
from lightning_mvp.export.memory import peak_memory
from lightning_mvp.export.source import Source


def test_a_spread_is_a_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 100.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_both_are_timed_in_turn() -> None:
    calls: list[str] = []
    runs: dict[str, Callable[[], object]] = {
        "one": lambda: (calls.append("one"), time.sleep(0.002)),
        "two": lambda: (calls.append("two"), time.sleep(0.002)),
    }
    times = alternate(runs, seconds=0.001, threads=1)
    assert [len(each) for each in times.values()] == [ROUNDS[0]] * 2
    turns = [name for name, before in zip(calls[1:], calls, strict=False) if name != before]
    assert len(turns) >= 2 * ROUNDS[0]


def test_the_ratio_is_of_the_first_over_the_second() -> None:
    found = compare({"slow": lambda: time.sleep(0.02), "quick": lambda: time.sleep(0.005)}, 4, 0.01, 1)
    assert 2 < found.ratio.median < 6
    assert found.seconds["slow"].median == pytest.approx(0.02, rel=0.5)
    assert found.throughput["slow"] == 4 / found.seconds["slow"].median


def test_a_timed_training_step_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)).eval()
    images = torch.randn(4, 3, 8, 8)
    model(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = training_step(model, images)
    step()
    step()
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_memory_grows_by_what_more_images_need(source_of: Callable[[str], Source], tmp_path: Path) -> None:
    source = source_of("efficientnet_b0")
    write_safetensors(source, tmp_path)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())
    few, many = (peak_memory(tmp_path, source.images(batch), threads=1) for batch in (1, 512))
    # The stem's output alone, and its norm's: 16 channels kept of 32, 16 x 16 pixels.
    assert many - few > 2 * 511 * 16 * 16 * 16 * 4
    assert weights < few < 20 * weights
