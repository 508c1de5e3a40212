"""The documentation names tests and commands that exist, and its Python examples run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_mvp.apps.zoo import parser
from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.seen_by import preprocessing_of

from .apps.test_config import compose_for
from .tasks.photographs import write_photographs
from .voting.conftest import RECIPE, World, arrays, world

__all__ = ["world"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in (*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def test_every_row_about_the_trainer_names_tests_that_exist() -> None:
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    section = PAGES["refused.md"].split("\n## ")[1]
    rows = re.findall(r"^\| (?!what |---).*$", PAGES["trainer.md"] + section, re.M)
    assert len(rows) > 60
    for row in rows:
        _, outcome, _ = (cell.strip() for cell in row.strip("|").split("|"))
        assert outcome in ("works", "refused", "warns", "stops"), row
        named = re.search(r"<!-- (.+) -->", row)
        assert named, row
        assert set(named[1].split()) <= tests, set(named[1].split()) - tests


def test_each_fault_can_be_planted() -> None:
    faults = yaml.safe_load((ROOT / "tests" / "faults" / "faults.yaml").read_text())
    assert [fault["name"] for fault in faults if fault["old"] not in (ROOT / fault["file"]).read_text()] == []
    assert [name for fault in faults for name in fault.get("tests", ()) if not (ROOT / name).exists()] == []


# Commands ------------------------------------------------------------------------------------------------------------


def commands_of(page: str) -> Iterator[list[str]]:
    """Every `mvp-…` with arguments, in blocks of code and in sentences."""
    joined = re.sub(r"\\\n *", " ", PAGES[page])
    lines = re.findall(r"^(?: {4,})?(mvp-\w+ .+)$", joined, re.M)
    for text in (*lines, *re.findall(r"(?<!`)`(mvp-\w+ [^`]+)`", joined.replace("\n", " "))):
        yield shlex.split(text, comments=True)


def as_one_job(arguments: list[str]) -> list[str]:
    """The overrides of a sweep's first job."""
    overrides = []
    for told in (word for word in arguments if word != "-m"):
        override = OverridesParser.create().parse_override(told)
        if override.is_choice_sweep() or override.is_range_sweep():
            overrides.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
        elif not override.is_sweep_override():
            overrides.append(told)
    return overrides


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands_of(page))])
def test_every_command_is_one_that_its_configuration_knows(page: str) -> None:
    for command, *arguments in commands_of(page):
        if any(mark in word for word in arguments for mark in ("…", "|")):
            continue  # a sentence about the command
        if command == "mvp-zoo" and len(arguments) == 1:
            with pytest.raises(SystemExit, match=r"^0$"):
                parser().parse_args([*arguments, "--help"])
        elif command == "mvp-zoo":
            parser().parse_args(arguments)
        else:
            compose_for(command.removeprefix("mvp-"), *as_one_job(arguments))


# Examples in Python --------------------------------------------------------------------------------------------------


@pytest.fixture
def given(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the examples of a page run: `photos/` of some classes, and a `zoo/` of three entries."""
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", dict.fromkeys(("cat", "dog", "bird", "fish"), 20), (24, 24))
    seen = preprocessing_of(world.facts("one", "ab").to_dict())
    zoo = ModelZoo.create("zoo", RECIPE, arrays(world.backbone.state_dict()), world.groups.sizes, seen)
    for seed, (name, classes) in enumerate({"one": "ab", "two": "cd", "three": "ef"}.items()):
        zoo.add(world.entry(name, classes, seed))
    return tmp_path


def photos_of_two_classes(folder: Path) -> None:
    """What a page that reads the whole folder finds."""
    for name in ("bird", "fish"):
        shutil.rmtree(folder / "photos" / name)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page not in ("data.md", "zoo-care.md")))
        for page, text in PAGES.items()
        if "```python" in text and page not in ("extend.md", "README.md", "start.md")
    ],
)
def test_the_examples_of_each_page_run_one_after_the_other(page: str, given: Path) -> None:
    """As they stand, but for the number of steps."""
    if page == "trainer.md":
        photos_of_two_classes(given)
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code in BLOCK.findall(PAGES[page]):
        code = re.sub(r"max_steps=\d+", "max_steps=20", code)
        if language == "python" and page == "ddp.md":  # it starts itself again, so it has to be a file
            (given / "script.py").write_text(code)
            subprocess.run([sys.executable, "script.py"], check=True, timeout=240)
        elif language == "python":
            exec(compile(code, page, "exec"), names)
