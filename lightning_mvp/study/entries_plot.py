"""Accuracies in a picture against the entries of a zoo that grows by use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from lightning_mvp.pictures import GROWN, MOST_SERIES, PALETTE, chunks, label_ends, page, styled
from lightning_mvp.study.accuracy_plots import GROWN_NAME
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.results import Run


@styled
def accuracy_against_entries(runs: Sequence[Run], growths: Mapping[str, Growth] | None = None) -> Figure | None:
    """Mean accuracy against the number of a grown zoo's entries, panels for each number of steps on the target.

    Orders of one growth are one line, which is drawn in every panel. None where no zoo was asked at several sizes.

    Args:
        runs: of variants; those without ``vote.entries`` are left out, and targets that not all points have.
        growths: name → how that zoo grew, the usual growth first; those that are not there are called by their names.
    """
    points: dict[int, dict[str, dict[int, dict[str, list[float]]]]] = {}
    for run in (run for run in runs if "vote.entries" in run["changes"]):
        line = points.setdefault(run["steps"], {}).setdefault(_line_name(run, growths or {}), {})
        line.setdefault(run["changes"]["vote.entries"], {}).setdefault(run["task"], []).append(100 * run["accuracy"])
    if not any(len(line) > 1 for lines in points.values() for line in lines.values()):
        return None
    found = [set(tasks) for lines in points.values() for line in lines.values() for tasks in line.values()]
    common = set.intersection(*found) or set.union(*found)
    means = {
        (steps, name): {
            entries: fmean(fmean(own) for task, own in tasks.items() if task in common)
            for entries, tasks in sorted(line.items())
        }
        for steps, lines in points.items()
        for name, line in lines.items()
    }
    names = sorted({name for _, name in means}, key=lambda name: (name != GROWN_NAME, name))
    others = [colour for colour in PALETTE if colour != GROWN]
    colours = {name: GROWN if name == GROWN_NAME else others[place % len(others)] for place, name in enumerate(names)}
    panels: list[tuple[int, list[str]]] = []
    for steps in sorted(points):
        own = [name for name in names if (steps, name) in means]
        main = own[: own[0] == GROWN_NAME]
        panels += [(steps, [*main, *part]) for part in chunks(own[len(main) :], MOST_SERIES - 1)]
    about = f"Test accuracy in %, mean over {len(common)} targets; all panels have the same scale."
    figure = page(2.0 * len(panels) + 0.9, "Does the vote get better as the zoo grows?", about)
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    heights = [[value for name in part for value in means[steps, name].values()] for steps, part in panels]
    span = 1.25 * max(max(own) - min(own) for own in heights) or 1.0
    for axes, (steps, part), own_heights in zip(every, panels, heights, strict=True):
        middle = (max(own_heights) + min(own_heights)) / 2
        axes.set(title=f"after {steps:,} steps", ylabel="test accuracy, %", ylim=(middle - span / 2, middle + span / 2))
        for name in part:
            axes.plot(*zip(*means[steps, name].items(), strict=True), color=colours[name], marker="o")
    every[-1].set_xticks(sorted({entries for line in means.values() for entries in line}))
    every[-1].set_xlabel("entries in the zoo")
    for axes, (steps, part) in zip(every, panels, strict=True):
        label_ends(axes, [(*list(means[steps, name].items())[-1], name, colours[name]) for name in part])
    return figure


def _line_name(run: Run, growths: Mapping[str, Growth]) -> str:
    """What a variant of a zoo is called in a picture: how the zoo grew, and what else is not as usual."""
    changes, growth = run["changes"], run["changes"].get("vote.growth")
    words = [METHODS[run["method"]].short]
    neighbours = None
    if run["method"] == "mvp":
        words = ["independent entries"]
    elif growth in growths:
        own, usual = growths[growth], next(iter(growths.values()))
        neighbours = own.neighbours
        words = ["one net, task after task" if own.neighbours == 1 else GROWN_NAME]
        words += ["labels shuffled"] * own.shuffle + ["one task mislabelled"] * (own.poison is not None)
        words += ["masks frozen"] * (own.first_wave == own.neighbours > 1)
        for name in ("seeds", "steps", "mimic", "augment"):
            if getattr(own, name) != getattr(usual, name):
                words.append(f"{name} {getattr(own, name)}")
    elif growth is not None and len(growth) > 1:  # a single letter is an order of growth
        words = [growth]
    if changes.get("vote.neighbours", neighbours) != neighbours:
        words.append(f"{changes['vote.neighbours']} vote")
    if not changes.get("optim.mimic"):
        words.append("no mimicking")
    return ", ".join(words)
