"""The pictures of the page over several reports."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.pictures import (
    DENSE,
    GENERIC,
    GRID,
    INK,
    LINES,
    NEAREST,
    ONCE,
    PALETTE,
    QUIET,
    SCRATCH,
    SHADE,
    VOTE,
    label_ends,
    page,
    points_text,
    styled,
)
from lightning_mvp.study.accuracy_plots import COLOURS, OVER_LINES
from lightning_mvp.study.results import Difference
from lightning_mvp.study.trials import TrialResult
from lightning_mvp.study.trust_rules import Case, calibration, left_out_predictions

MARKS = ("o", "s", "D", "^", "v", "P")
# Beyond so many times what most differences are, a difference would take the room of all others: an arrow says it.
FAR = 2.0
# The question that a group of trials answers. A group that is not listed here is called by its setting's name.
QUESTIONS = {
    "neighbours": "How many neighbours vote?",
    "similarity": "How are neighbours found?",
    "votes": "How do votes count?",
    "weights": "Whose weights are kept?",
    "batch norm": "What are batch norm's statistics?",
    "missing": "What about weights that no neighbour has?",
    "zoo": "How many entries has the zoo?",
    "ratio": "How much is removed?",
    "rate": "What is the peak learning rate?",
    "scope": "Where are units chosen?",
    "width": "How wide is the vote?",
    "criterion": "By what are units chosen?",
    "groups": "Which groups of units are pruned?",
}


@styled
def differences_of_sections(
    sections: Mapping[str, Mapping[str, Difference]],
    rivals: Mapping[str, Mapping[str, str]],
    title: str,
    about: Mapping[str, str] | None = None,
) -> Figure:
    """Differences to each rival with their intervals, a band for each kind of target.

    Args:
        sections: name of the kind → method → difference.
        rivals: title of a panel → method → what it is called there; others are left out.
        title: what the differences are.
        about: name of the kind → what its targets are.
    """
    known = {name for differences in sections.values() for name in differences}
    shown = {heading: {name: words[name] for name in words if name in known} for heading, words in rivals.items()}
    panels = {heading: words for heading, words in shown.items() if words}
    most = max(map(len, panels.values()))
    note = (
        "Points of test accuracy with their 95 % interval, right of 0 where ours is better; arrows: beyond the scale."
    )
    figure = page((0.1 * most + 0.14) * len(sections) + 0.16 * most + 1.6, title, note)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, words) in zip(every, panels.items(), strict=True):
        limits = _limits([found[name] for found in sections.values() for name in words if name in found])
        for row, differences in enumerate(sections.values()):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color=SHADE, lw=0, zorder=0)
            for place, name in enumerate(words):
                if name in differences:
                    up = row + 0.84 * ((place + 0.5) / len(words) - 0.5)
                    _difference(axes, differences[name], up, _look(name, place), limits)
        _frame(axes, len(sections), limits)
        axes.set_xlabel("points of test accuracy")
        for place, (name, label) in enumerate(words.items()):
            colour, mark = _look(name, place)
            axes.plot([], [], color=colour, marker=mark, ls="", label=label)
        legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), labelspacing=0.25, handletextpad=0.1)
        legend.set(alignment="left")
        legend.set_title(heading, prop={"weight": "bold", "size": 9})
        for text, (place, name) in zip(legend.get_texts(), enumerate(words), strict=True):
            text.set_color(_look(name, place)[0])
    what = [(about or {}).get(name) or (about or {}).get(name.rpartition(", ")[0]) for name in sections]
    names = [f"{name}\n{words}" if words else name for name, words in zip(sections, what, strict=True)]
    every[0].set_yticks(range(len(sections)), names, fontsize=8)
    return figure


@styled
def differences_of_choices(trials: Sequence[TrialResult]) -> Figure:
    """Each choice minus the default, which is the first trial, under the question that it answers.

    A difference far beyond the others is an arrow at the edge.
    """
    first, own = trials[0], trials[1:]
    asked: dict[str, list[TrialResult]] = {}
    for trial in own:
        asked.setdefault(trial.question, []).append(trial)
    rows: list[tuple[str, TrialResult | None]] = []
    for question, answers in asked.items():
        rows += [(QUESTIONS.get(question, question), None), *((_spaced(answer.answer), answer) for answer in answers)]
    note = (
        f"Points of validation accuracy against the default ({100 * first.accuracy.mean:.1f} %), mean over "
        f"{first.tasks} development tasks with its 95 % interval.\nFilled where the interval excludes 0; "
        "arrows: beyond the scale."
    )
    figure = page(0.185 * len(rows) + 1.3, "One choice at a time", note)
    axes = figure.subplots()
    limits = _limits([trial.difference for trial in own])
    for row, (_, answer) in enumerate(rows):
        if answer is None:
            axes.axhline(row - 0.5, color=GRID, lw=0.8)
        else:
            sure = answer.difference.low > 0 or answer.difference.high < 0
            _difference(axes, answer.difference, row, (NEAREST, "o"), limits, written=True, filled=sure)
    _frame(axes, len(rows), limits)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(rows)), [words for words, _ in rows])
    for (_, answer), label in zip(rows, axes.get_yticklabels(), strict=True):
        if answer is None:
            label.set(color=INK, fontweight="bold", fontsize=8)
    axes.set_xlabel("points of validation accuracy")
    return figure


@styled
def trust(found: Mapping[str, Sequence[Case]]) -> Figure:
    """How often and by how much the vote won, against what LEEP predicts.

    The left plot shows how often it won, with Wilson's 95 % interval, against the prediction of a rule that was fitted
    without that kind of target. The right plot shows by how much it won against the last rival, a small dot for each
    target and a large one for the mean of each kind of target.

    Args:
        found: rival → cases. The left plot leaves out a rival against which all are won or all are lost.
    """
    name, cases = list(found.items())[-1]
    figure = page(
        4.6, "Does LEEP tell when to trust the vote?", f"Left: the vote against each rival. Right: against {name}."
    )
    left, right = figure.subplots(1, 2)
    left.plot([0, 100], [0, 100], color=LINES, lw=1, ls="--")
    ends = []
    for (rival, own), colour, mark in zip(found.items(), (NEAREST, VOTE, ONCE, GENERIC, DENSE), MARKS, strict=False):
        won = [case.won for case in own]
        if len(set(won)) < 2:
            continue
        bins = calibration(left_out_predictions(own), won)
        x, y = [100 * each.predicted for each in bins], [100 * each.observed for each in bins]
        sides = [
            [100 * (each.observed - each.low) for each in bins],
            [100 * (each.high - each.observed) for each in bins],
        ]
        left.errorbar(
            x, y, sides, color=colour, marker=mark, lw=1, label=f"{rival} ({len(own)} targets)", clip_on=False
        )
    left.set(xlabel="predicted: the vote wins, %", ylabel="it won, %", xlim=(-3, 103), ylim=(-3, 103))
    left.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), labelcolor="linecolor", labelspacing=0.25)
    for kind in dict.fromkeys(case.kind for case in cases):
        own = [case for case in cases if case.kind == kind]
        x, y = [100 * case.evidence.explained for case in own], [100 * case.difference for case in own]
        right.plot(x, y, ".", color=LINES, ms=5, mew=0, zorder=2)
        right.plot(fmean(x), fmean(y), "o", color=NEAREST, ms=6, zorder=3)
        ends.append((fmean(x), fmean(y), kind, INK))
    right.axhline(0, color=INK, lw=0.8)
    right.set(xlabel="labels' entropy that the nearest entry explains, %", ylabel="vote minus rival, points")
    right.margins(x=0.1)
    label_ends(right, ends, 8)
    return figure


def _spaced(answer: str) -> str:
    """``"shared-classes"`` as words; ``"re-estimated"`` is one."""
    return re.sub(r"(?<!\bre)-", " ", answer)


def _look(name: str, place: int) -> tuple[str, str]:
    """Colour and mark of a rival: its method's colour where it has one, and a mark of its own in its panel."""
    colours = {**COLOURS, "better Taylor": SCRATCH, "once-mimic": ONCE}
    return colours.get(name.partition("@")[0], PALETTE[place % len(PALETTE)]), MARKS[place % len(MARKS)]


def _limits(found: Sequence[Difference]) -> tuple[float, float]:
    """The lower and the upper end of the axis, in points.

    The axis shows 0 and all differences but outliers. An arrow stands for each outlier.
    """
    far = FAR * float(np.quantile([abs(each.mean) for each in found], 0.9))
    own = [each for each in found if abs(each.mean) <= far]
    while True:
        ends = [0.0, *(float(np.nan_to_num(end, nan=each.mean)) for each in own for end in (each.low, each.high))]
        most = max(map(abs, ends)) or 0.01
        ends += [math.copysign(most / 2, each.mean) for each in found if each not in own]  # room for an arrow
        low, high = min(ends) - 0.1 * most, max(ends) + 0.1 * most
        inside = [each for each in found if each in own or low <= each.mean <= high]  # what has room is drawn whole
        if len(inside) == len(own):
            return 100 * low, 100 * high
        own = inside


def _frame(axes: Axes, rows: int, limits: tuple[float, float]) -> None:
    axes.set(ylim=(rows - 0.5, -0.5), xlim=limits)
    axes.axvline(0, color=INK, lw=0.8, zorder=1)
    axes.grid(False, axis="y")


def _difference(
    axes: Axes,
    found: Difference,
    row: float,
    look: tuple[str, str],
    limits: tuple[float, float],
    written: bool = False,
    filled: bool = True,
) -> None:
    """A mark with its interval, or an arrow at the edge with the value."""
    (colour, mark), mean, (low, high) = look, 100 * found.mean, limits
    if not low <= mean <= high:
        text, edge, side = (
            (f"{points_text(mean, 0)} →", high, "right") if mean > 0 else (f"← {points_text(mean, 0)}", low, "left")
        )
        axes.text(edge, row, text, color=colour, ha=side, va="center", fontsize=8)
        return
    sides = 100 * np.nan_to_num([[found.mean - found.low], [found.high - found.mean]])  # one target has no interval
    face = colour if filled else "white"
    axes.errorbar(mean, row, xerr=sides, color=colour, marker=mark, mfc=face, ms=4.5, lw=1.2, zorder=3)
    if written:
        beside: dict[str, Any] = {"va": "center", "fontsize": 7.5, "color": QUIET, "bbox": OVER_LINES}
        axes.annotate(points_text(mean), (mean + sides[1][0], row), (4, 0), textcoords="offset points", **beside)
