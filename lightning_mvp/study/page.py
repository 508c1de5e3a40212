"""One page over several reports: what a reader with ten minutes wants to know, computed from their runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_mvp.files import write_whole
from lightning_mvp.study.page_plots import differences_of_choices, differences_of_sections, trust
from lightning_mvp.study.paragraphs import kinds_of_targets
from lightning_mvp.study.pool import by_label, ratios, runs_at
from lightning_mvp.study.results import Difference, Row, points_of, summarise
from lightning_mvp.study.settings import StudySettings
from lightning_mvp.study.trials import TrialResult, compare_trials
from lightning_mvp.study.trust import Case, believable, brier, cases, left_out_predictions

# Rivals in the order of the page's columns; iterative Taylor comes with MVP's steps and with more.
RIVALS = (
    ("nearest", "nearest model"),
    ("random_vote", "random neighbours"),
    ("all_vote", "all tasks"),
    ("generic_parent", "generic from the parent"),
    ("generic", "generic from θ⁰"),
    ("taylor", "Taylor, as many steps"),
    ("taylor@300", "Taylor, 300 steps"),
    ("taylor@1000", "Taylor, 1,000 steps"),
)


@dataclass(frozen=True)
class Section:
    """One kind of target, backbone or operating point: a row of the page's first table."""

    title: str
    mvp: Row
    rivals: dict[str, Row]


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
        """On targets, by methods; variants, trials and what made zoos grow say no ratio."""
        return [line for line in self.lines if "pruning_ratio" in line]

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["task"].startswith("development")]

    @cached_property
    def settings(self) -> list[StudySettings]:
        """Of its studies."""
        found = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))["settings"]
        return [StudySettings.from_dict(settings) for settings in found.values()]

    def sections(self) -> Iterator[Section]:
        """Its kinds of study and operating points."""
        for label, own in by_label(self.runs).items():
            points = ratios(own)
            for ratio in points:
                rows = [row for row in summarise(runs_at(own, ratio)) if not row.zoo]
                ours = next((row for row in rows if row.method == "mvp"), None)
                if ours is not None:
                    title = label or self.folder.name
                    yield Section(
                        title if len(points) == 1 else f"{title}, {ratio:.0%} removed", ours, _rivals(rows, ours.steps)
                    )


def _rivals(rows: Sequence[Row], steps: int) -> dict[str, Row]:
    """Those with as many steps by their names, and iterative Taylor with more as ``taylor@1000``."""
    known = [row for row in rows if row.mvp_minus is not None]
    more = {f"{row.method}@{row.steps}": row for row in known if row.method == "taylor" and row.steps > steps}
    return {row.method: row for row in known if row.steps == steps} | more


def write_page(out: Path, reports: Sequence[Path], *, note: str, command: str, learned: str = "") -> list[Section]:
    """Write ``report.md`` and its pictures into ``out``.

    Args:
        out: folder of the page.
        reports: folders of finished reports, inside ``out`` or beside it.
        note: what a reader must know first.
        command: that repeats all of it.
        learned: Markdown of what people made of it, placed first.

    Raises:
        FileNotFoundError: one of them is no report.
        ValueError: none of their runs is of MVP.
    """
    found = [Report(folder) for folder in reports]
    sections = [section for report in found for section in report.sections()]
    if not sections:
        raise ValueError(f"Expected runs of MVP on targets in {', '.join(map(str, reports))}, but found none.")
    choices = {report.folder.name: trials for report in found if (trials := choices_of(report.trials))}
    out.mkdir(parents=True, exist_ok=True)
    differences_of_sections({section.title: _differences(section) for section in sections}, dict(RIVALS)).savefig(
        out / "differences.png", dpi=130
    )
    paragraphs = ["# Meta-Vote Pruning: the study on one page", note, *([learned] if learned else [])]
    titles = {section.title for section in sections}
    shown = [settings for report in found for settings in report.settings if settings.label in titles]
    paragraphs += [*differences_table(sections), *kinds_of_targets(shown), "![MVP minus its rivals](differences.png)"]
    for name, trials in choices.items():
        differences_of_choices(trials).savefig(out / f"{name}.png", dpi=130)
        paragraphs += [*one_choice_at_a_time(trials), f"![One choice at a time]({name}.png)"]
    if found_cases := cases_by_rival([run for report in found for run in report.runs]):
        trust(found_cases).savefig(out / "trust.png", dpi=130)
        paragraphs += [*when_to_trust(found_cases), "![When to trust the vote](trust.png)"]
    names = [f"[{report.folder.name}]({_inside(report.folder, out)}/report.md)" for report in found]
    paragraphs.append(
        f"## Every run\n\nReports with their tables, pictures and runs: {', '.join(names)}. All of it again:"
    )
    paragraphs.append("\n".join(f"    {line}" for line in command.splitlines()))
    write_whole(out / "report.md", ("\n\n".join(paragraphs) + "\n").encode(), overwrite=True)
    return sections


def _differences(section: Section) -> dict[str, Difference]:
    return {name: row.mvp_minus for name, row in section.rivals.items() if row.mvp_minus is not None}


def _inside(folder: Path, out: Path) -> str:
    return Path(os.path.relpath(folder, out)).as_posix()


def cases_by_rival(runs: Sequence[dict[str, Any]]) -> dict[str, list[Case]]:
    """The rivals from scratch, by what they are called, with the targets that know their evidence."""
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
        "a rule is worth something where it is below that of the share of wins among the other kinds."
    )
    lines = [
        "| the vote against | targets | won | Brier score by: share of wins | explained | explained and lead | "
        "what `mvp-vote` says: log-odds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, own in found.items():
        won = [case.won for case in own]
        cells = [name, str(len(own)), f"{sum(won) / len(won):.0%}"]
        for features in ((), ("explained",), ("explained", "lead")):
            cells.append(f"{brier(left_out_predictions(own, features), won):.3f}")
        rule = believable(own)
        words = f"{rule.intercept:+.2f}" + (f" {rule.explained:+.2f} · explained" if rule.explained else "")
        lines.append("| " + " | ".join([*cells, words]).replace("-", "−") + " |")
    yield "\n".join(lines)


def differences_table(sections: Sequence[Section]) -> Iterator[str]:
    """MVP minus each rival, a row for each kind of target."""
    shown = [(name, words) for name, words in RIVALS if any(name in section.rivals for section in sections)]
    yield "## MVP minus its rivals"
    yield (
        "Points of test accuracy, paired over the same targets, with 95 % bootstrap intervals; positive where MVP is "
        "better. All with MVP's number of steps unless the heading says otherwise; in parentheses the number of "
        "targets, where the rival was not run on all."
    )
    heads = ("targets of", "targets", "MACs", "MVP, %", *(words for _, words in shown))
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for section in sections:
        ours = section.mvp
        cells = [section.title, str(ours.targets), f"{ours.macs / 1e6:.1f} M", f"{100 * ours.accuracy.mean:.1f}"]
        differences = _differences(section)
        for name, _ in shown:
            fewer = f" ({row.targets})" if (row := section.rivals.get(name)) and row.targets < ours.targets else ""
            cells.append(points_of(differences[name]) + fewer if name in differences else "–")
        lines.append("| " + " | ".join(cells) + " |")
    yield "\n".join(lines)


def choices_of(runs: Sequence[dict[str, Any]]) -> list[TrialResult]:
    """Trials against one called ``default``, whose names are questions with answers: ``neighbours.4``."""
    results = compare_trials(runs) if runs else []
    return results if results and results[0].name == "default" else []


def one_choice_at_a_time(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Each trial against the default, a row for each question."""
    first = trials[0]
    yield "## One choice at a time"
    yield (
        f"Against the default ({100 * first.accuracy:.1f} % on validation images of {first.tasks} development tasks, "
        f"{first.macs / 1e6:.1f} M MACs): points of accuracy, paired, with 95 % intervals; **bold** where the interval "
        "excludes 0; MACs where they are others."
    )
    lines = ["| choice | difference to the default |", "| --- | --- |"]
    asked: dict[str, list[TrialResult]] = {}
    for trial in trials[1:]:
        asked.setdefault(trial.question, []).append(trial)
    for name, own in asked.items():
        lines.append(f"| {name} | " + "; ".join(_cell(trial, first) for trial in own) + " |")
    yield "\n".join(lines)


def _cell(trial: TrialResult, first: TrialResult) -> str:
    words = points_of(trial.difference)
    words = f"**{words}**" if trial.difference.low > 0 or trial.difference.high < 0 else words
    other = "" if abs(trial.macs / first.macs - 1) < 0.02 else f" ({trial.macs / 1e6:.1f} M)"
    return f"{trial.answer}{other}: {words}"
