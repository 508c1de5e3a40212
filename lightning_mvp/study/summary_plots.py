"""The pictures of the page over several reports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.study.report_plots import COLOURS, MARKS, framed, legend_below
from lightning_mvp.study.results import Difference
from lightning_mvp.study.trials import TrialResult
from lightning_mvp.study.trust_rules import Case, calibration, left_out_predictions

# A difference of accuracies so great that all others could not be told apart in the same picture.
TOO_FAR_TO_DRAW = 0.15
LONGER = {"taylor@300": "#CC79A7", "taylor@1000": "#882255"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#000000", "#999933", "#666666")


def differences_of_sections(
    sections: Mapping[str, Mapping[str, Difference]], rivals: Mapping[str, str], title: str
) -> Figure:
    """Differences to each rival, a line for each kind of target, with its interval.

    Args:
        sections: title → method → difference.
        rivals: method → what it is called; others are left out.
        title: what the differences are.
    """
    shown = [name for name in rivals if any(name in differences for differences in sections.values())]
    figure, axes = _frame_of_differences(1.6 + 0.55 * len(sections), list(sections), title)
    for place, name in enumerate(shown):
        own = {row: found[name] for row, found in enumerate(sections.values()) if name in found}
        colour = LONGER.get(name, COLOURS.get(name, "#BBBBBB"))
        up = [row + 0.7 * ((place + 0.5) / len(shown) - 0.5) for row in own]
        _draw(axes, list(own.values()), up, colour, MARKS[place % len(MARKS)], rivals[name])
    legend_below(figure, axes, 3)
    return figure


def differences_of_choices(trials: Sequence[TrialResult]) -> Figure:
    """Each choice minus the default, which is the first trial. A large difference is written at the edge instead."""
    own = trials[1:]
    names = [f"{trial.question}: {trial.answer}" for trial in own]
    title = "difference to the default, points of validation accuracy (95 % interval)"
    figure, axes = _frame_of_differences(1.2 + 0.21 * len(trials), names, title, fontsize=8)
    near = [row for row, trial in enumerate(own) if abs(trial.difference.mean) < TOO_FAR_TO_DRAW]
    _draw(axes, [own[row].difference for row in near], near, COLOURS["nearest"], "o", None)
    for row in set(range(len(own))) - set(near):
        mean = 100 * own[row].difference.mean
        text = f"← {mean:.0f}".replace("-", "−") if mean < 0 else f"{mean:.0f} →"
        side, align = (0.01, "left") if mean < 0 else (0.99, "right")
        axes.text(side, row, text, transform=axes.get_yaxis_transform(), va="center", ha=align, fontsize=8)
    return figure


def trust(found: Mapping[str, Sequence[Case]]) -> Figure:
    """How often and by how much the vote won, against what LEEP predicts.

    The left plot shows how often it won, with Wilson's 95 % interval, against the prediction of a rule that was fitted
    without that kind of target. The right plot shows by how much it won against the last rival.

    Args:
        found: rival → cases. The left plot leaves out a rival against which all are won or all are lost.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    for (name, cases), colour, mark in zip(found.items(), ("#0072B2", "#D55E00", "#882255"), MARKS, strict=False):
        won = [case.won for case in cases]
        if len(set(won)) < 2:
            continue
        bins = calibration(left_out_predictions(cases), won)
        x, y = [each.predicted for each in bins], [each.observed for each in bins]
        sides = [[each.observed - each.low for each in bins], [each.high - each.observed for each in bins]]
        left.errorbar(x, y, sides, color=colour, marker=mark, lw=1, capsize=2, label=f"{name} ({len(cases)} targets)")
    left.set(xlabel="predicted probability that the vote wins", ylabel="how often it won", xlim=(-0.03, 1.03))
    left.set_ylim(-0.03, 1.03)
    left.legend(fontsize=8, title="against", title_fontsize=8)
    name, cases = list(found.items())[-1]
    styles = zip(itertools.cycle(MARKS), itertools.cycle(PALETTE), strict=False)
    for kind, (mark, colour) in zip(dict.fromkeys(case.kind for case in cases), styles, strict=False):
        own = [case for case in cases if case.kind == kind]
        x, y = [case.evidence.explained for case in own], [100 * case.difference for case in own]
        right.plot(x, y, ls="", marker=mark, ms=5, alpha=0.8, color=colour, label=kind)
    right.axhline(0, color="black", lw=0.8)
    explained = "share of the labels' entropy that the nearest entry explains"
    right.set(xlabel=explained, ylabel=f"vote minus {name}, points")
    right.legend(fontsize=7, ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _frame_of_differences(height: float, rows: Sequence[str], name: str, **options: Any) -> tuple[Figure, Axes]:
    figure, axes = framed(8, height, name)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(rows)), rows, **options)
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    return figure, axes


def _draw(
    axes: Axes, found: Sequence[Difference], up: Sequence[float], colour: str, mark: str, label: str | None
) -> None:
    means = [100 * each.mean for each in found]
    # One target has no interval.
    sides = np.nan_to_num([[100 * (each.mean - each.low), 100 * (each.high - each.mean)] for each in found]).T
    axes.errorbar(means, up, xerr=sides, color=colour, marker=mark, ms=4.5, ls="", lw=1, label=label)
