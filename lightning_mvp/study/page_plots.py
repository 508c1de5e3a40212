"""The pictures of the page over several reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_mvp.study.plots import COLOURS, MARKS
from lightning_mvp.study.results import Difference
from lightning_mvp.study.trials import TrialResult


def differences_of_sections(sections: Mapping[str, Mapping[str, Difference]], rivals: Mapping[str, str]) -> Figure:
    """MVP minus each rival, a line for each kind of target, with its interval.

    Args:
        sections: title → method → difference.
        rivals: method → what it is called; others are left out.
    """
    shown = [name for name in rivals if any(name in differences for differences in sections.values())]
    figure = Figure(figsize=(8, 1.6 + 0.55 * len(sections)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(shown):
        rows = [row for row, differences in enumerate(sections.values()) if name in differences]
        own = [differences[name] for differences in sections.values() if name in differences]
        colour = "#882255" if name == "taylor@most" else COLOURS.get(name, "#BBBBBB")
        up = np.array(rows) + 0.7 * ((place + 0.5) / len(shown) - 0.5)
        _draw(axes, own, up, colour, MARKS[place % len(MARKS)], rivals[name])
    axes.set_yticks(range(len(sections)), list(sections))
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="MVP minus the rival, points of test accuracy (95 % interval)")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    return figure


def differences_of_choices(trials: Sequence[TrialResult]) -> Figure:
    """Each choice minus the default, the first trial."""
    figure = Figure(figsize=(8, 1.2 + 0.21 * len(trials)), layout="constrained")
    axes = figure.subplots()
    own = [trial.difference for trial in trials[1:]]
    _draw(axes, own, np.arange(len(own), dtype=float), COLOURS["nearest"], "o", None)
    axes.set_yticks(
        range(len(own)), [trial.name.replace(".", ": ", 1).replace("-", " ") for trial in trials[1:]], fontsize=8
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="difference to the default, points of validation accuracy (95 % interval)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _draw(axes: object, found: Sequence[Difference], up: np.ndarray, colour: str, mark: str, label: str | None) -> None:
    means = np.array([100 * each.mean for each in found])
    # One target has no interval.
    sides = np.nan_to_num([[100 * (each.mean - each.low), 100 * (each.high - each.mean)] for each in found]).T
    axes.errorbar(means, up, xerr=sides, color=colour, marker=mark, ms=4.5, ls="", lw=1, label=label)  # type: ignore[attr-defined]
