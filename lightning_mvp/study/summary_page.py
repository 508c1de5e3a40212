"""One page over several reports, for a reader with ten minutes, computed from their runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_mvp.pictures import save_figure
from lightning_mvp.study import grown_page
from lightning_mvp.study.finished_study import by_label, ratios, runs_at
from lightning_mvp.study.markdown import indented, markdown_table, signed, write_markdown
from lightning_mvp.study.report_paragraphs import kinds_of_targets, words_of_targets
from lightning_mvp.study.results import Difference, Row, format_points, points_cell, summarise
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.study.summary_plots import differences_of_choices, differences_of_sections, trust
from lightning_mvp.study.trials import TrialResult, compare_trials
from lightning_mvp.study.trust_rules import Case, believable, brier, cases, left_out_predictions

# Rivals in the order of the page's columns; iterative Taylor comes with MVP's steps and with more.
RIVALS = {
    "nearest": "nearest model",
    "random_vote": "random neighbours",
    "all_vote": "all tasks",
    "generic_parent": "generic from the parent",
    "generic": "generic from θ⁰",
    "taylor": "Taylor, as many steps",
    "taylor@300": "Taylor, 300 steps",
    "taylor@1000": "Taylor, 1,000 steps",
}
# The same in the picture, for a reader who has not met them: other uses of the zoo, then pruning without one.
IN_WORDS = {
    "against other uses of a zoo": {
        "nearest": "the nearest model alone",
        "random_vote": "random neighbours' vote",
        "all_vote": "all entries' vote",
        "generic_parent": "one model for all (parent)",
        "generic": "one model for all (dense)",
    },
    "against pruning from scratch": {
        "taylor": "as many steps",
        "taylor@300": "300 steps",
        "taylor@1000": "1,000 steps",
    },
}


@dataclass(frozen=True)
class Section:
    """One kind of target, backbone or operating point: a row of the page's first table."""

    title: str
    mvp: Row
    rivals: dict[str, Row]

    @property
    def differences(self) -> dict[str, Difference]:
        """MVP minus each rival."""
        return {name: row.mvp_minus for name, row in self.rivals.items() if row.mvp_minus is not None}


@dataclass(frozen=True)
class Report:
    """A finished report, read back from its folder.

    Args:
        folder: with ``results.jsonl``.
    """

    folder: Path

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Every run, on targets and on development tasks.

        Raises:
            FileNotFoundError: the folder holds no report.
        """
        path = self.folder / "results.jsonl"
        if not path.exists():
            raise FileNotFoundError(
                f"Expected a report in {self.folder}, but found no results.jsonl. Write it first: mvp-compare "
                f"'stages=[report]' 'pool=[STUDY,…]' folder={self.folder}."
            )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs of methods and variants on targets. Trials and entries of growing zoos have no ratio."""
        return [line for line in self.lines if "pruning_ratio" in line]

    @cached_property
    def grown_kinds(self) -> list[grown_page.KindOfTarget]:
        """One for each kind of target with the vote of a zoo that grew by use."""
        return list(grown_page.grown_kinds(self.runs))

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The runs of variants on targets; older reports don't say that they are."""
        own = [line for line in self.lines if "trial" in line and not line["task"].startswith("development")]
        return [run for run in own if run.get("variant") or "pruning_ratio" not in run]

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["task"].startswith("development")]

    @cached_property
    def settings(self) -> list[StudySettings]:
        """The settings of its studies."""
        found = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))["settings"]
        return [StudySettings.from_dict(settings) for settings in found.values()]

    @property
    def targets(self) -> dict[str, str]:
        """The title of each kind of study → what its targets are, in a few words."""
        words = {settings.label: words_of_targets(settings) for settings in reversed(self.settings)}
        titles = {label: label or self.folder.name for label in words}
        return {title: words[label] for label, title in titles.items()}

    def sections(self) -> Iterator[Section]:
        """A section for each kind of study and operating point in which MVP was run."""
        for label, own in by_label(self.runs).items():
            points, title = ratios(own), label or self.folder.name
            for ratio in points:
                rows = [row for row in summarise(runs_at(own, ratio)) if not row.zoo]
                ours = next((row for row in rows if row.method == "mvp"), None)
                if ours is not None:
                    name = title if len(points) == 1 else f"{title}, {ratio:.0%} removed"
                    yield Section(name, ours, _rivals(rows, ours.steps))


def _rivals(rows: Sequence[Row], steps: int) -> dict[str, Row]:
    """Method → row with as many steps, and iterative Taylor with more steps as ``taylor@1000``."""
    more = {f"{row.method}@{row.steps}": row for row in rows if row.method == "taylor" and row.steps > steps}
    return {row.method: row for row in rows if row.steps == steps} | more


def write_page(out: Path, reports: Sequence[Path], *, note: str, command: str, learned: str = "") -> float:
    """Write ``report.md`` and its pictures into ``out``.

    Args:
        out: folder of the page.
        reports: folders of finished reports, inside ``out`` or beside it.
        note: what a reader must know first.
        command: that repeats all of it.
        learned: Markdown of what people made of it, placed first.

    Returns:
        The mean accuracy of the first row.

    Raises:
        FileNotFoundError: one of them is no report.
        ValueError: none of their runs is of MVP.
    """
    found = [Report(folder) for folder in reports]
    sections = [section for report in found if not report.grown_kinds for section in report.sections()]
    kinds = [kind for report in found for kind in report.grown_kinds]
    if not sections and not kinds:
        raise ValueError(f"Expected runs of MVP on targets in {', '.join(map(str, reports))}, but found none.")
    choices = {report.folder.name: trials for report in found if (trials := find_choices(report.trials))}
    out.mkdir(parents=True, exist_ok=True)
    paragraphs: list[str] = []
    about = {name: words for report in found for name, words in report.targets.items()}
    if kinds:
        differences = {kind.title: kind.differences for kind in kinds}
        title = "The vote of a grown zoo, minus what else could be done"
        figure = differences_of_sections(differences, {"against": grown_page.RIVALS}, title, about)
        save_figure(out / "grown.png", figure)
        paragraphs += [*grown_page.grown_table(kinds), "![The vote of a grown zoo minus its rivals](grown.png)"]
    if sections:
        differences = {section.title: section.differences for section in sections}
        figure = differences_of_sections(differences, IN_WORDS, "Meta-Vote Pruning minus its rivals", about)
        save_figure(out / "differences.png", figure)
        paragraphs += [*differences_table(sections), "![MVP minus its rivals](differences.png)"]
    titles = {*(section.title for section in sections), *(kind.title for kind in kinds)}
    shown = [settings for report in found for settings in report.settings if settings.label in titles]
    paragraphs += kinds_of_targets(shown)
    for name, trials in choices.items():
        save_figure(out / f"{name}.png", differences_of_choices(trials))
        paragraphs += [*one_choice_at_a_time(trials), f"![One choice at a time]({name}.png)"]
    if found_cases := cases_by_rival([run for report in found for run in report.runs]):
        paragraphs += when_to_trust(found_cases)
        if any(believable(own) for own in found_cases.values()):  # else nothing can be predicted
            save_figure(out / "trust.png", trust(found_cases))
            paragraphs.append("![When to trust the vote](trust.png)")
    folders = [(report.folder.name, Path(os.path.relpath(report.folder, out)).as_posix()) for report in found]
    names = ", ".join(f"[{name}]({folder}/report.md)" for name, folder in folders)
    paragraphs.append(f"## Every run\n\nReports with their tables, pictures and runs: {names}. All of it again:")
    write_markdown(
        out / "report.md", "Meta-Vote Pruning: the study on one page", note, learned, [*paragraphs, indented(command)]
    )
    return kinds[0].grown.accuracy.mean if kinds else sections[0].mvp.accuracy.mean


def cases_by_rival(runs: Sequence[dict[str, Any]]) -> dict[str, list[Case]]:
    """Name of a rival from scratch → the targets with the evidence that LEEP gave; of several kinds of target."""
    budgets = sorted({run["steps"] for run in runs if run["method"] == "taylor"})
    every = {f"iterative Taylor, {steps:,} steps": cases(runs, ("taylor", steps)) for steps in budgets}
    return {name: own for name, own in every.items() if len({case.kind for case in own}) > 1}


def when_to_trust(found: dict[str, list[Case]]) -> Iterator[str]:
    """How well LEEP predicts who wins, on kinds of target that a rule was not fitted on."""
    yield "## When to trust the vote"
    yield (
        "Before anything is trained LEEP says how much of the labels' entropy the nearest entry explains, "
        "1 + LEEP/H(y), and how far it leads the zoo, in standard deviations. Logistic rules on these, fitted on all "
        "*other* kinds of target, predict whether the vote wins. Brier score: mean squared error of the probabilities; "
        "a rule is worth something where it is below that of the share of wins among the other kinds. `mvp-vote` tells "
        "the rule of the targets of all studies together."
    )
    scores = ("Brier score by: share of wins", "explained", "explained and lead")
    headings = ("the vote against", "targets", "won", *scores, "rule")
    yield markdown_table(headings, [_trust_cells(name, own) for name, own in found.items()], "lrrrrrl")


def _trust_cells(rival: str, own: Sequence[Case]) -> list[str]:
    won, rule = [case.won for case in own], believable(own)
    known: tuple[tuple[str, ...], ...] = ((), ("explained",), ("explained", "lead"))
    scores = [f"{brier(left_out_predictions(own, features), won):.3f}" for features in known]
    words = "none"
    if rule is not None:
        words = f"log-odds {signed(rule.intercept, 2)} {signed(rule.explained, 2)} · explained"
    return [rival, str(len(own)), f"{sum(won) / len(won):.0%}", *scores, words]


def differences_table(sections: Sequence[Section]) -> Iterator[str]:
    """MVP minus each rival, a row for each kind of target."""
    shown = [name for name in RIVALS if any(name in section.differences for section in sections)]
    yield "## MVP minus its rivals"
    yield (
        "Points of test accuracy, paired over the same targets, with 95 % bootstrap intervals; positive where MVP is "
        "better. All with MVP's number of steps unless the heading says otherwise; in parentheses the number of "
        "targets, where the rival was not run on all."
    )
    rows = []
    for section in sections:
        ours = section.mvp
        cells = [section.title, str(ours.targets), f"{ours.macs / 1e6:.1f} M", f"{100 * ours.accuracy.mean:.1f}"]
        differences = section.differences
        for name in shown:
            row = section.rivals.get(name)
            cells.append(points_cell(differences.get(name), row.targets if row else 0, ours.targets))
        rows.append(cells)
    yield markdown_table(("targets of", "targets", "MACs", "MVP, %", *(RIVALS[name] for name in shown)), rows)


def find_choices(runs: Sequence[dict[str, Any]]) -> list[TrialResult]:
    """Trials against one called ``default``, whose names are questions with answers: ``neighbours.4``."""
    results = compare_trials(runs) if runs else []
    return results if results and results[0].name == "default" else []


def one_choice_at_a_time(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Each trial against the default, a row for each question."""
    first, accuracy = trials[0], 100 * trials[0].accuracy.mean
    yield "## One choice at a time"
    yield (
        f"Against the default ({accuracy:.1f} % on validation images of {first.tasks} development tasks, "
        f"{first.macs / 1e6:.1f} M MACs): points of accuracy, paired, with 95 % intervals; **bold** where the interval "
        "excludes 0; MACs where they are others."
    )
    asked: dict[str, list[TrialResult]] = {}
    for trial in trials[1:]:
        asked.setdefault(trial.question, []).append(trial)
    rows = [(question, "; ".join(_answer(trial, first) for trial in own)) for question, own in asked.items()]
    yield markdown_table(("choice", "difference to the default"), rows, "ll")


def _answer(trial: TrialResult, first: TrialResult) -> str:
    words = format_points(trial.difference)
    words = f"**{words}**" if trial.difference.low > 0 or trial.difference.high < 0 else words
    other = "" if abs(trial.macs / first.macs - 1) < 0.02 else f" ({trial.macs / 1e6:.1f} M)"
    return f"{trial.answer}{other}: {words}"
