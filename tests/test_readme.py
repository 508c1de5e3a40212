"""The README's numbers are those of the committed results, and its commands exist."""

import json
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from lightning_mvp.study.paragraphs import markdown_table, verdicts
from lightning_mvp.study.pool import ratios, runs_at
from lightning_mvp.study.results import summarise

ROOT = Path(__file__).parents[1]


def runs_of_the_study() -> list[dict[str, Any]]:
    lines = (ROOT / "benchmarks" / "cifar100" / "cnn" / "results.jsonl").read_text().splitlines()
    return [run for run in map(json.loads, lines) if run["task"].startswith("target")]


def test_the_main_table_is_computed_from_the_committed_runs() -> None:
    runs = runs_of_the_study()
    table = markdown_table(summarise(runs_at(runs, ratios(runs)[0])))
    text = (ROOT / "README.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("|") and " ± " in line]
    assert len(shown) >= 8
    assert set(shown) <= set(table.splitlines())
    assert table in (ROOT / "benchmarks" / "cifar100" / "cnn" / "report.md").read_text()


def test_the_differences_that_the_readme_names_are_computed_from_them() -> None:
    runs = runs_of_the_study()
    sentences = verdicts(summarise(runs_at(runs, ratios(runs)[0])))
    text = " ".join((ROOT / "README.md").read_text().split())
    named = re.findall(r"[+−][0-9.]+ points \[[^]]+\]", text)
    assert len(named) >= 3
    for figure in named:
        assert any(figure in sentence for sentence in sentences), figure


def test_every_command_that_the_readme_names_is_installed() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    commands = {line.split(" = ")[0] for line in config["options.entry_points"]["console_scripts"].strip().splitlines()}
    text = (ROOT / "README.md").read_text()
    named = {word.strip("`|,.:") for word in text.split() if word.strip("`|,.:").startswith("mvp-")}
    assert named - {"mvp-outputs/", "mvp-outputs/demo/report.md"} == commands
