"""The picture of a sweep: accuracy against each key that was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning_mvp.apps.sweep_records import Record, swept_values
from lightning_mvp.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 4
MOST_NAMES = 12  # values that are written below a panel; of more only some numbers are
NUMBERED = ("task", "seed")  # numbers that say which, not how much: no line joins them


def draw_sweep(path: Path, records: Sequence[Record]) -> bool:
    """Draw validation accuracies of a sweep's jobs, a panel for each key that has several values; False if none has.

    Each job is a dot. Where several jobs have the same value of a key their mean is drawn, too: it is over all other
    keys. Of more than four keys those with most values are drawn.

    Args:
        path: of the picture.
        records: of the jobs; those without a validation accuracy are left out.
    """
    jobs = [
        (values, 100 * record["val_accuracy"])
        for record, values in zip(records, swept_values(records), strict=True)
        if record.get("val_accuracy") is not None
    ]
    points = {
        key: [(values[key], accuracy) for values, accuracy in jobs if key in values]
        for key in dict.fromkeys(key for values, _ in jobs for key in values)
    }
    counts = {key: len({value for value, _ in own}) for key, own in points.items()}
    keys = sorted((key for key in points if counts[key] > 1), key=lambda key: -counts[key])[:MOST_PANELS]
    if not keys:
        return False
    from lightning_mvp.pictures import save_beside, styled  # not for commands that draw nothing

    shown = {key: points[key] for key in keys}
    return save_beside(path, lambda: styled(_figure)(shown, len(jobs)))


def _figure(points: Mapping[str, Sequence[tuple[str, float]]], jobs: int) -> Figure:
    from lightning_mvp.pictures import WIDTH, page

    about = f"{counted(jobs, 'job')}, each a dot, against what was swept."
    figure = page(3.9, "Accuracy on validation images", about, WIDTH if len(points) > 1 else 0.65 * WIDTH)
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for axes, (key, own) in zip(panels, points.items(), strict=True):
        _draw(axes, key, own)
    panels[0].set_ylabel("validation accuracy, %")
    return figure


def _draw(axes: Axes, key: str, points: Sequence[tuple[str, float]]) -> None:
    from lightning_mvp.pictures import NEAREST, VOTE

    names = list(dict.fromkeys(value for value, _ in points))
    numbers = [_number(name) for name in names]
    numeric = None not in numbers
    places: dict[str, Any] = dict(zip(names, numbers if numeric else range(len(names)), strict=True))
    at = sorted(places.values())
    several = len(points) > len(names)
    axes.plot(
        [places[value] for value, _ in points],
        [accuracy for _, accuracy in points],
        ls="",
        marker="o",
        ms=4.5,
        alpha=0.4 if several else 0.9,
        mew=0,
        color=NEAREST,
        clip_on=False,
    )
    if several:
        means = {places[name]: fmean(accuracy for value, accuracy in points if value == name) for name in names}
        heights = [means[place] for place in at]
        joined = numeric and key.rpartition(".")[2] not in NUMBERED
        axes.plot(at, heights, ls="-" if joined else "none", marker="D", ms=5, color=VOTE, lw=1.2)
        axes.annotate(
            "mean", (at[-1], heights[-1]), (6, 0), "data", "offset points", color=VOTE, va="center", fontsize=8
        )
    if numeric and at[0] > 0 and at[-1] >= 20 * at[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(names) <= MOST_NAMES:
        wide = sum(map(len, names)) > 45
        shown = {places[name]: name if len(name) <= 24 else f"{name[:23]}…" for name in names}
        axes.set_xticks(at, [shown[place] for place in at], rotation=30 * wide, ha="right" if wide else "center")
    elif not numeric:
        axes.set_xticks([])
    axes.margins(x=0.08)
    axes.set_xlabel(key)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
