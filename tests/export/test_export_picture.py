"""The picture of an export says the same as its report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_mvp.export.export_picture import draw_before_after
from lightning_mvp.export.export_report import ExportReport, Pair
from lightning_mvp.export.measure import Comparison, Spread

LATENCY = Comparison(
    1, {"dense": Spread(0.004, 0.0035, 0.0045), "small": Spread(0.002, 0.0018, 0.0025)}, Spread(2.0, 1.6, 2.4)
)
REPORT = ExportReport(
    name="pets",
    device="CPU",
    threads=1,
    memory_batch=32,
    parameters=Pair(400_000, 100_000),
    macs=Pair(12_000_000, 3_000_000),
    peak_memory=Pair(8_000_000, 4_000_000),
    memory_is="as measured",
    files={"model.safetensors": 412_000},
    differences={},
    latency=(LATENCY,),
    accuracy={"test_accuracy": 0.78},
)


def test_bars_are_shares_of_the_dense_model_and_numbers_stand_beside_them() -> None:
    figure = draw_before_after(REPORT)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["size, parameters", "MACs of one image", "latency, batch 1", "memory, batch 32"]
    assert [bar.get_width() for bar in axes.patches[4:]] == pytest.approx([25, 25, 50, 50])
    words = [text.get_text() for text in axes.texts]
    assert words[0] == "400 k → 100 k: 4.0 × fewer\n412.0 kB on disk"
    assert words[2] == "4.00 → 2.00 ms: 2.0 × as fast"
    assert figure.texts[1].get_text().endswith("Accuracy after pruning: 78.0 % on test images.")


def test_an_accuracy_that_nobody_knows_is_not_made_up() -> None:
    assert draw_before_after(replace(REPORT, accuracy={})).texts[1].get_text().endswith("pruning: not known.")


def test_a_model_that_became_slower_is_not_cut_off() -> None:
    slower = replace(LATENCY, ratio=Spread(0.5, 0.4, 0.6))
    (axes,) = draw_before_after(replace(REPORT, latency=(slower,))).axes
    assert axes.get_xlim()[1] > 250
