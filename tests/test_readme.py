"""The README's numbers are those of the committed results, and its commands exist."""

import json
from configparser import ConfigParser
from pathlib import Path

from lightning_mvp.study.report import markdown_table
from lightning_mvp.study.results import summarise

ROOT = Path(__file__).parents[1]


def test_the_main_table_is_computed_from_the_committed_runs() -> None:
    runs = json.loads((ROOT / "benchmarks" / "first_comparison" / "results.json").read_text())["runs"]
    assert len(runs) == 54
    assert markdown_table(summarise(runs)) in (ROOT / "README.md").read_text()


def test_every_command_that_the_readme_names_is_installed() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    commands = {line.split(" = ")[0] for line in config["options.entry_points"]["console_scripts"].strip().splitlines()}
    text = (ROOT / "README.md").read_text()
    named = {word.strip("`|,.:") for word in text.split() if word.strip("`|,.:").startswith("mvp-")}
    assert named - {"mvp-outputs/", "mvp-outputs/demo/report.md"} == commands
