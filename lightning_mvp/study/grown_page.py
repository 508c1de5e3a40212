"""The first table of the page: zoos that grew by use against what else could be done, a row for each kind of target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mvp.study.finished_study import by_label
from lightning_mvp.study.markdown import markdown_table
from lightning_mvp.study.results import Difference, points_cell
from lightning_mvp.study.trials import TrialResult, compare_trials, split_order

GROWN = "grown@100"
# The primary comparison is with the better of these two on the same targets.
TAYLORS = ("taylor@1000", "taylor-mimic@1000")
RIVALS = {
    "better Taylor": "iterative Taylor, 1,000 steps, the better of with and without mimicking",
    "once-mimic@100": "one-shot Taylor, reconstructed, mimicking",
    "one@100": "one net trained task after task",
    "mvp@100": "vote of independent entries",
    "dense@100": "not pruned, 100 steps",
}


@dataclass(frozen=True)
class KindOfTarget:
    """What was found on the targets of one kind.

    Args:
        title: what the kind is called.
        grown: the vote of a grown zoo after 100 steps.
        rivals: name out of :data:`RIVALS` → what it gave.
        differences: the same names → the grown zoo's vote minus it, paired over the targets that both were run on.
        mimics: whether the better Taylor is the one that mimics.
    """

    title: str
    grown: TrialResult
    rivals: dict[str, TrialResult]
    differences: dict[str, Difference]
    mimics: bool


def role_of(trial: str) -> str:
    """A variant's name without its order of growth and the number of entries, by which studies differ.

    Example:
        >>> role_of("grown-50.A@100"), role_of("once-mimic@100")
        ('grown@100', 'once-mimic@100')
    """
    return re.sub(r"-\d+(?=@)", "", split_order(trial)[0])


def first_of_each_role(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Role → the variant that has it. Of variants with several numbers of entries the first one counts."""
    names: dict[str, str] = {}
    for run in runs:
        names.setdefault(role_of(run["trial"]), split_order(run["trial"])[0])
    return names


def grown_kinds(runs: Sequence[dict[str, Any]]) -> Iterator[KindOfTarget]:
    """One for each label of studies that have a grown zoo.

    Of several numbers of entries the one that the study names first counts.

    Args:
        runs: on targets, of methods and variants, as in ``results.jsonl``.
    """
    for label, own in by_label(runs).items():
        names = first_of_each_role(run for run in own if run.get("variant")) | {"mvp@100": "mvp@100"}
        if GROWN not in names:
            continue
        found = {result.name: result for result in compare_trials(own, names[GROWN])}
        by_role = {role: found[name] for role, name in names.items() if name in found}
        taylors = {role: by_role[role] for role in TAYLORS if role in by_role}
        rivals = {role: by_role[role] for role in RIVALS if role in by_role}
        better = max(taylors, key=lambda role: taylors[role].difference.mean, default=None)
        if better is not None:
            rivals = {"better Taylor": taylors[better], **rivals}
        differences = {role: negated(rival.difference) for role, rival in rivals.items()}
        yield KindOfTarget(label, by_role[GROWN], rivals, differences, better == TAYLORS[1])


def negated(difference: Difference) -> Difference:
    """The same difference the other way round.

    Example:
        >>> negated(Difference(0.5, 0.25, 1.0))
        Difference(mean=-0.5, low=-1.0, high=-0.25)
    """
    return Difference(-difference.mean, -difference.high, -difference.low)


def grown_table(kinds: Sequence[KindOfTarget]) -> Iterator[str]:
    """The vote of a grown zoo minus each rival, a row for each kind of target."""
    shown = [role for role in RIVALS if any(role in kind.rivals for kind in kinds)]
    yield "## The vote of a grown zoo, minus what else could be done"
    yield (
        "Test accuracy after 100 steps on the new task, and before the first; then points, paired over the same "
        "targets, with 95 % bootstrap intervals, positive where the vote of the grown zoo is better. Rivals have 100 "
        "steps, too, but for Taylor with 1,000, where *m* says that the better one mimics. In parentheses the number "
        "of targets, where the rival was not run on all."
    )
    rows = []
    for kind in kinds:
        cells = [kind.title, str(kind.grown.tasks), f"{kind.grown.macs / 1e6:.1f} M"]
        cells += [f"{100 * kind.grown.start:.1f}", f"{100 * kind.grown.accuracy.mean:.1f}"]
        for role in shown:
            rival, mimics = kind.rivals.get(role), " *m*" if role == "better Taylor" and kind.mimics else ""
            tasks = rival.tasks if rival else 0
            cells.append(points_cell(kind.differences.get(role), tasks, kind.grown.tasks, mimics))
        rows.append(cells)
    headings = ("targets of", "targets", "MACs", "before, %", "after, %", *(RIVALS[role] for role in shown))
    yield markdown_table(headings, rows)
