"""The numbers of README and of the study's page are those of the committed results, and the README's commands exist."""

import json
import math
import re
from configparser import ConfigParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from lightning_mvp.apps.vote import MIMIC
from lightning_mvp.study.finished_study import by_label, ratios, runs_at
from lightning_mvp.study.grown_page import KindOfTarget, grown_kinds, grown_table, role_of
from lightning_mvp.study.report_paragraphs import main_table, verdicts
from lightning_mvp.study.results import format_points, paired_bootstrap, summarise
from lightning_mvp.study.summary_page import (
    Report,
    cases_by_rival,
    differences_table,
    find_choices,
    one_choice_at_a_time,
    when_to_trust,
)
from lightning_mvp.study.trials import compare_trials
from lightning_mvp.study.trust_rules import believable
from lightning_mvp.voting.trust import RULES

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks" / "cifar100"
# The columns of the page's first table that README shows, too.
IN_README = (0, 1, 4, 5, 6, 7, 9)
REPORTS = [Report(STUDY / name) for name in ("cnn", "vit", "efficientnet", "general", "ablations")]


def runs_of_the_study() -> list[dict[str, Any]]:
    lines = (STUDY / "cnn" / "results.jsonl").read_text().splitlines()
    return [run for run in map(json.loads, lines) if run["task"].startswith("target")]


def test_the_main_table_is_computed_from_the_committed_runs() -> None:
    runs = runs_of_the_study()
    table = main_table(summarise(runs_at(runs, ratios(runs)[0])))
    assert table in (STUDY / "cnn" / "report.md").read_text()


def test_what_the_readme_says_of_part_one_is_computed_from_its_runs() -> None:
    runs = runs_of_the_study()
    sentences = verdicts(summarise(runs_at(runs, ratios(runs)[0])))
    text = " ".join((ROOT / "README.md").read_text().split())
    text = text[text.index("part one]") : text.index("What to do")]
    named = re.findall(r"[+−][0-9.]+ points \[[^]]+\]", text)
    assert len(named) >= 2
    for figure in named:
        assert any(figure in sentence for sentence in sentences), figure


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_readmes_table_is_that_of_the_page() -> None:
    """The same rows; of the columns those that a first reader needs."""
    page, readme = ((folder / name).read_text() for folder, name in ((STUDY, "report.md"), (ROOT, "README.md")))
    every = [row for row in map(cells, page.splitlines()) if len(row) == len(IN_README) + 3]
    rows = {row[0]: row for row in every[2:]}  # below the headings and the line
    shown = [row for row in map(cells, readme.splitlines()) if row[0] in rows and len(row) == len(IN_README)]
    assert len(shown) == 6
    assert shown == [[rows[row[0]][column] for column in IN_README] for row in shown]


# What README, docs/zoo.md and the report say of zoos that grow: a variant, and what it is set against.
GROWN_REPORT = STUDY / "grown"
GROWN = [
    ("grown-50@100", "taylor-mimic@1000"),
    ("grown-50@100", "taylor@1000"),
    ("grown-50@300", "taylor-mimic@1000"),
    ("grown-50@100", "mvp@100"),
    ("independent-50-mimic@100", "mvp@100"),
    ("grown-50@100", "independent-50-mimic@100"),
    ("one-50@100", "grown-50@100"),
    ("shuffled-50@100", "grown-50@100"),
    ("generic-zoo-mimic@100", "grown-50@100"),
    ("grown-50@100", "once-mimic@100"),
    ("mvp@100", "once-mimic@100"),
    ("taylor-mimic@1000", "taylor@1000"),
    ("grown-100@100", "taylor-mimic@1000"),
    ("grown-100@100", "taylor@1000"),
    ("grown-100@100", "generic-zoo-mimic@100"),
    ("frozen-50@100", "grown-50@100"),
]
HELD_OUT = [
    ("grown-50@100", "taylor@1000"),
    ("grown-50@300", "taylor@1000"),
    ("taylor-mimic@1000", "taylor@1000"),
    ("grown-50@100", "mvp@100"),
    ("shuffled-50@100", "grown-50@100"),
]


def unsigned(text: str) -> str:
    """A sentence that says "behind" or "ahead" leaves signs out: figures are compared without them, ends in order."""
    text = re.sub(r"[+−]| points", "", " ".join(text.split()))
    return re.sub(r"\[([0-9.]+), ([0-9.]+)\]", lambda ends: f"[{', '.join(sorted(ends.groups()))}]", text)


def test_the_figures_of_grown_zoos_are_computed_from_the_committed_runs() -> None:
    lines = (STUDY / "grown" / "results.jsonl").read_text().splitlines()
    computed = []
    for kind, pairs in (("target", GROWN), ("heldout", HELD_OUT)):
        runs = [run for run in map(json.loads, lines) if "trial" in run and run["task"].startswith(kind)]
        for variant, reference in pairs:
            found = {result.name: result for result in compare_trials(runs, reference)}
            computed.append(unsigned(format_points(found[variant].difference)))
    learned = unsigned((STUDY / "grown" / "learned.md").read_text())
    for figure in computed:
        assert figure in learned
    (told,) = re.findall(r"[0-9.]+ \[[0-9., ]+\]", unsigned(MIMIC).replace(" more", ""))
    assert told in computed


GROWN_REPORTS = ("efficientnet_grown", "vit_grown", "grown", "general_grown")


def intervals_in(text: str) -> set[str]:
    """Every difference with its interval, without signs."""
    return set(re.findall(r"[0-9.]+ \[[0-9., ]+\]", unsigned(text)))


def runs_on(kind: KindOfTarget, report: Report) -> list[dict[str, Any]]:
    return by_label(report.runs)[kind.title]


def differences_of(kind: KindOfTarget, report: Report) -> set[str]:
    """All differences of one kind of target from the better Taylor and from the grown zoo's vote, without signs."""
    found = list(kind.differences.values())
    for reference in (kind.rivals["better Taylor"], kind.grown):
        found += [result.difference for result in compare_trials(runs_on(kind, report), reference.name)]
    return {unsigned(format_points(difference)) for difference in found}


@pytest.mark.parametrize(
    ("name", "targets"), [("efficientnet_grown", "six"), ("vit_grown", "ten"), ("general_grown", "eight")]
)
def test_what_is_said_of_a_grown_zoo_is_computed_from_its_runs(name: str, targets: str) -> None:
    """Every interval, and every number with one decimal; and what must be said is there."""
    report = Report(STUDY / name)
    kinds = list(grown_kinds(report.runs))
    learned = (STUDY / name / "learned.md").read_text()
    trials = [trial for own in by_label(report.trials).values() for trial in compare_trials(own)]
    told = intervals_in(learned)
    assert told <= set().union(*(differences_of(kind, report) for kind in kinds))
    for kind in kinds:
        decides = {unsigned(format_points(kind.differences[role])) for role in ("better Taylor", "once-mimic@100")}
        assert decides <= told, kind.title
    against_taylor = compare_trials(runs_on(kinds[0], report), kinds[0].rivals["better Taylor"].name)
    (one,) = (result for result in against_taylor if role_of(result.name) == "one@100")
    assert {unsigned(format_points(each)) for each in (one.difference, kinds[0].differences["one@100"])} <= told
    assert kinds[0].mimics, "the text says that the better Taylor mimics"
    results = [*trials, *(result for kind in kinds for result in compare_trials(runs_on(kind, report)))]
    numbers = {f"{100 * value:.1f}" for result in results for value in (result.accuracy.mean, result.start)}
    numbers |= {
        f"{kind.rivals['dense@100'].macs / kind.grown.macs:.1f}" for kind in kinds if "dense@100" in kind.rivals
    }
    rest = re.sub(r"[0-9.]+ \[[0-9., ]+\]", "", unsigned(learned))
    one_decimal = set(re.findall(r"(?<![\d.])\d+\.\d(?!\d)", rest))
    assert one_decimal <= numbers
    assert {f"{100 * trial.accuracy.mean:.1f}" for trial in trials} <= one_decimal
    assert kinds[0].rivals["better Taylor"].tasks == {"six": 6, "eight": 8, "ten": 10}[targets]
    assert f"{targets} targets" in learned


def test_the_page_of_grown_zoos_is_computed_from_the_committed_runs() -> None:
    page, learned = ((STUDY / name).read_text() for name in ("report.md", "learned.md"))
    reports = [Report(STUDY / name) for name in GROWN_REPORTS]
    found_in = [(kind, report) for report in reports for kind in grown_kinds(report.runs)]
    for paragraph in grown_table([kind for kind, _ in found_in]):
        assert paragraph in page
    computed = set().union(*(differences_of(kind, report) for kind, report in found_in))
    readme = (ROOT / "README.md").read_text()
    for text in (learned, readme[readme.index("## What to expect") : readme.index("part one]")]):
        assert len(intervals_in(text)) >= 4
        assert intervals_in(text) <= computed


def test_what_grown_zoos_cost_and_survive_is_computed_from_the_committed_measurements() -> None:
    learned, readme = (" ".join(path.read_text().split()) for path in (GROWN_REPORT / "learned.md", ROOT / "README.md"))
    drift = json.loads((GROWN_REPORT / "drift.json").read_text())

    def change(title: str, kind: str, state: int) -> str:
        after, before = (list(drift[title].values())[place][kind]["after"] for place in (state, 0))
        return format_points(paired_bootstrap([a - b for a, b in zip(after, before, strict=True)]))

    assert f"level ({change('another domain in between', 'photographs', 1)})" in learned
    assert f"latest eight of 100: {change('renewal', 'targets', 1)}" in learned
    assert {round(row["among"], 2) for row in drift["masks"][1:]} == {1.0}
    last, middle = (100 * fmean(drift["drift"][f"{entries} entries"]["classes 1"]["after"]) for entries in (100, 54))
    assert f"({last:.1f} against {middle:.1f} %)" in learned
    paid = json.loads((GROWN_REPORT / "budgets.json").read_text())["break_even"]
    tasks = {
        unit: [math.ceil(paid[f"grown-50.A@{steps} against taylor-mimic@1000"][unit]) for steps in (100, 300)]
        for unit in ("tera-MACs", "steps", "seconds")
    }
    assert "{} or {} tasks in multiply-accumulates".format(*tasks["tera-MACs"]) in learned
    assert "{} or {} in steps, {} or {} in seconds".format(*tasks["steps"], *tasks["seconds"]) in learned
    every = [count for counts in tasks.values() for count in counts]
    assert f"Parent and seeds are paid after {min(every)} to {max(every)} tasks" in readme


def test_the_page_is_computed_from_the_committed_runs() -> None:
    page = (STUDY / "plain" / "report.md").read_text()
    sections = [section for report in REPORTS for section in report.sections()]
    runs = [run for report in REPORTS for run in report.runs]
    for paragraphs in (
        differences_table(sections),
        one_choice_at_a_time(find_choices(REPORTS[-1].trials)),
        when_to_trust(cases_by_rival(runs)),
    ):
        for paragraph in paragraphs:
            assert paragraph in page


def test_what_a_vote_says_to_expect_is_fitted_on_the_committed_runs() -> None:
    names = [path.parent.name for path in sorted(STUDY.glob("*/results.jsonl")) if path.parent.name != "efficientnet"]
    found = cases_by_rival([run for name in names for run in Report(STUDY / name).runs])
    rules = {name: rule for name, cases in found.items() if (rule := believable(cases)) is not None}
    assert rules == {f"iterative Taylor, {100 * times:,} steps": rule for times, rule in RULES.items()}


def test_every_command_that_the_readme_names_is_installed() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    commands = {line.split(" = ")[0] for line in config["options.entry_points"]["console_scripts"].strip().splitlines()}
    text = (ROOT / "README.md").read_text()
    named = {word.strip("`|,.:") for word in text.split() if word.strip("`|,.:").startswith("mvp-")}
    assert named - {"mvp-outputs/", "mvp-outputs/demo/report.md"} == commands
