"""A task's images in one picture: some of each class, in a row of its own."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_mvp.pictures import INK, page, styled
from lightning_mvp.tasks.datamodule import TaskDataModule

MOST_CLASSES = 20


@styled
def draw_samples(data: TaskDataModule, per_class: int = 10) -> Figure:
    """The first training images of each class, as they are before any augmentation or crop.

    A zoo holds no images: this is for where its tasks' data are known.

    Args:
        data: of the task; the first 20 of its classes are drawn.
        per_class: the most images of a class.
    """
    part, facts = data.part("train"), data.facts
    classes = facts.classes[:MOST_CLASSES]
    more = f"; {len(facts.classes) - len(classes)} more classes" if len(facts.classes) > len(classes) else ""
    about = f"{len(facts.classes)} classes, {len(part):,} training images{more}."
    figure = page(0.62 * len(classes) + 0.9, f"Images of {facts.name}", about)
    cells = figure.subplots(len(classes), per_class, squeeze=False)
    for row, (name, line) in enumerate(zip(classes, cells, strict=True)):
        of_class = part.labels[:, row] > 0 if part.labels.ndim == 2 else part.labels == row
        chosen = torch.nonzero(of_class).flatten()[:per_class].tolist()
        for place, axes in enumerate(line):
            axes.axis("off")
            if place < len(chosen):
                pixels = part.open(chosen[place]).permute(1, 2, 0).numpy()
                axes.imshow(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3])
        line[0].text(
            -0.15, 0.5, str(name)[:24], transform=line[0].transAxes, ha="right", va="center", color=INK, fontsize=9
        )
    return figure
