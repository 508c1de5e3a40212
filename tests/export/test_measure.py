"""Timing takes turns and changes nothing; memory is that of the model asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_mvp.export.measure import ROUNDS, Spread, alternate, compare
from lightning_mvp.export.memory import peak_memory
from lightning_mvp.export.source import Source


def test_a_spread_is_a_median_and_quartiles() -> None:
    assert Spread.from_values([4.0, 1.0, 3.0, 2.0, 100.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.from_values([2.0]) == Spread(2.0, 2.0, 2.0)


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


def test_memory_grows_by_what_more_images_need(source_of: Callable[[str], Source]) -> None:
    source = source_of("efficientnet_b0")
    weights = sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())
    few, many = (peak_memory(source.model, source.images(batch)) for batch in (1, 65))
    # The stem's output alone, and its norm's: 16 channels kept of 32, 16 x 16 pixels.
    assert many - few > 2 * 64 * 16 * 16 * 16 * 4
    assert weights < few < 2 * weights


def test_what_is_freed_or_seen_twice_counts_once() -> None:
    shared = nn.Linear(100, 100, bias=False)
    chain = nn.Sequential(shared, *(nn.Sequential(nn.Flatten(), shared) for _ in range(5)))
    images = torch.zeros(10, 100)
    assert peak_memory(chain, images) == shared.weight.nbytes + 3 * images.nbytes
