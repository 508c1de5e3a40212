"""The variants of a study, side by side: a table in Markdown, and accuracy against a growing zoo's size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from lightning_mvp.study.frozen import fingerprints_of
from lightning_mvp.study.pool import Study
from lightning_mvp.study.results import Difference, Interval, interval, paired_bootstrap, points_of


@dataclass(frozen=True)
class Line:
    """One variant, its orders of growth averaged in each target.

    Args:
        name: of the variant, without its order.
        steps: on the target.
        accuracy: over targets.
        start: their mean before the first step.
        minus: it minus the reference, over the targets both have; None for the reference.
        orders: the mean of each order of growth, where there are several.
        seconds: median of a target's.
        targets: how many.
    """

    name: str
    steps: int
    accuracy: Interval
    start: float
    minus: Difference | None
    orders: dict[str, float]
    seconds: float
    targets: int


def lines_of(runs: Sequence[Mapping[str, Any]], reference: str) -> list[Line]:
    """A line for each variant, in the order of the runs.

    Variants that differ in the order of growth alone are called alike but for an ending such as ``.A``; each target
    counts once, with their mean.

    Args:
        runs: records of targets.
        reference: the name that the others are set against.

    Example:
        >>> run = {"trial": "a.A@1", "task": "t", "steps": 1, "accuracy": 0.5, "curve": [(0, 0.2), (1, 0.5)]}
        >>> run |= {"start_seconds": 1, "fit_seconds": 1}
        >>> line, = lines_of([run, {**run, "trial": "a.B@1", "accuracy": 0.7}], "a@1")
        >>> line.name, round(line.accuracy.mean, 2), line.orders
        ('a@1', 0.6, {'A': 0.5, 'B': 0.7})
    """
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for run in runs:
        name, order = parted(run["trial"])
        found.setdefault(name, {}).setdefault(run["task"], {})[order] = run
    means = {
        name: {task: fmean(run["accuracy"] for run in orders.values()) for task, orders in tasks.items()}
        for name, tasks in found.items()
    }
    lines = []
    for name, tasks in found.items():
        own, ours = means[name], means.get(reference, {})
        both = [task for task in own if task in ours]
        every = [run for orders in tasks.values() for run in orders.values()]
        names = sorted({order for orders in tasks.values() for order in orders})
        by_order = {order: fmean(o[order]["accuracy"] for o in tasks.values() if order in o) for order in names}
        lines.append(
            Line(
                name=name,
                steps=every[0]["steps"],
                accuracy=interval(list(own.values())),
                start=fmean(fmean(run["curve"][0][1] for run in orders.values()) for orders in tasks.values()),
                minus=None if name == reference or not both else paired_bootstrap([own[t] - ours[t] for t in both]),
                orders=by_order if len(by_order) > 1 else {},
                seconds=median(run["start_seconds"] + run["fit_seconds"] for run in every),
                targets=len(own),
            )
        )
    return lines


def parted(trial: str) -> tuple[str, str]:
    """A variant's name and its order of growth.

    Example:
        >>> parted("grown-50.A@100"), parted("taylor@1000")
        (('grown-50@100', 'A'), ('taylor@1000', ''))
    """
    match = re.fullmatch(r"(.+)\.([A-Z])(@.*)?", trial)
    return (trial, "") if match is None else (match[1] + (match[3] or ""), match[2])


def variants(studies: Sequence[Study]) -> list[str]:
    """A section for each study that has variants: against the first one, which the settings thereby fix as primary."""
    paragraphs = []
    for study in studies:
        lines = lines_of(study.varied, parted(next(iter(study.settings.variants)))[0]) if study.varied else []
        if not lines:
            continue
        minus = f"minus `{lines[0].name}`"
        table = [
            f"| variant | steps | targets | before | accuracy | {minus} | by order of growth | seconds |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
            *(_row(line) for line in lines),
        ]
        paragraphs += [f"## Variants, {study.settings.label or study.folder.name}", "\n".join(table)]
        if study.grown:
            seconds = {name: sum(record["seconds"] for record in records) for name, records in study.grown.items()}
            told = ", ".join(f"`{name}` {len(study.grown[name])} entries, {s:.0f} s" for name, s in seconds.items())
            paragraphs.append(f"Zoos that grew: {told}.")
        zoos = fingerprints_of(study.folder)
        if zoos:
            told = ", ".join(f"`{name}` {value}" for name, value in zoos.items())
            paragraphs.append(f"Fingerprints of the zoos, the same before the targets and after: {told}.")
    return paragraphs


def _row(line: Line) -> str:
    half = "" if math.isnan(line.accuracy.half) else f" ± {100 * line.accuracy.half:.1f}"
    orders = ", ".join(f"{order} {100 * mean:.1f}" for order, mean in line.orders.items())
    cells = [
        f"`{line.name}`",
        str(line.steps),
        str(line.targets),
        f"{100 * line.start:.1f}",
        f"{100 * line.accuracy.mean:.1f}{half}",
    ]
    cells += ["" if line.minus is None else points_of(line.minus), orders, f"{line.seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def accuracy_against_entries(runs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Mean accuracy against the number of a grown zoo's entries, a line for each growth, number of steps and weight.

    Args:
        runs: of variants; those without ``vote.entries`` are left out, and targets that not all points have.
    """
    points: dict[tuple[str, int, float], dict[int, dict[str, float]]] = {}
    for run in runs:
        changes = run["changes"]
        if "vote.entries" in changes:
            line = (changes.get("vote.growth", "independent"), run["steps"], changes.get("optim.mimic", 0))
            points.setdefault(line, {}).setdefault(changes["vote.entries"], {})[run["task"]] = 100 * run["accuracy"]
    found = [set(tasks) for by_entries in points.values() for tasks in by_entries.values()]
    if not found:
        return None
    common = set.intersection(*found) or set.union(*found)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (growth, steps, weight), by_entries in sorted(points.items()):
        entries = sorted(by_entries)
        means = [fmean(value for task, value in by_entries[n].items() if task in common) for n in entries]
        axes.plot(entries, means, marker="o", label=f"{growth}, {steps} steps" + (", mimicking" if weight else ""))
    axes.set(xlabel="entries in the zoo", ylabel="test accuracy, %", title=f"{len(common)} targets")
    axes.legend(fontsize="small")
    return figure
