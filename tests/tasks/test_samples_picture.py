"""The images of a task are drawn class by class, as they are."""

from __future__ import annotations

import numpy as np

from lightning_mvp import TaskDataModule
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.samples_picture import draw_samples


def test_each_class_has_a_row_of_its_own_images() -> None:
    glyphs = load_data("glyphs", characters="ABDE", per_class_train=4, per_class_val=2, per_class_test=2)
    data = TaskDataModule(glyphs, glyphs.classes[:2], name="letters")
    figure = draw_samples(data, per_class=3)
    part = data.part("train")
    rows = [axes for axes in figure.axes if axes.texts]
    assert [axes.texts[0].get_text() for axes in rows] == list(glyphs.classes[:2])
    assert sum(bool(axes.images) for axes in figure.axes) == 6
    first = int((part.labels == 1).nonzero()[0])
    drawn = figure.axes[3].images[0].get_array()
    assert np.array_equal(drawn, part.open(first).permute(1, 2, 0).numpy())
