"""The documentation names tests and commands that exist, and its Python examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import lightning_mvp
from lightning_mvp.apps.zoo import main as look_after_a_zoo
from lightning_mvp.apps.zoo import parser
from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.seen_by import preprocessing_of

from .apps.conftest import TINY, TINY_ROUNDS
from .apps.test_config import compose_for
from .nursery import Nursery
from .tasks.photographs import write_photographs
from .voting.conftest import RECIPE, World, arrays, world

__all__ = ["world"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OPTIONAL = {"hydra/sweeper=optuna": "optuna", "launcher=ray": "ray"}
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
        if any(word in OPTIONAL and find_spec(OPTIONAL[word]) is None for word in arguments):
            continue  # only `make test-more` installs it
        if "--config-dir" in arguments:
            continue  # tests/test_own_config.py runs it, with the files that it needs
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
    """The folder in which the examples of a page run: photographs of two classes each, and a zoo of three entries."""
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", {"cat": 20, "dog": 20}, (24, 24))
    write_photographs(tmp_path / "more-photos", {"bird": 20, "fish": 20}, (24, 24))
    seen = preprocessing_of(world.facts("one", "ab").to_dict())
    zoo = ModelZoo.create("zoo", RECIPE, arrays(world.backbone.state_dict()), world.groups.sizes, seen)
    for seed, (name, classes) in enumerate({"one": "ab", "two": "cd", "three": "ef"}.items()):
        zoo.add(world.entry(name, classes, seed))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page not in ("data.md", "zoo-care.md")))
        for page, text in PAGES.items()
        if "```python" in text and page not in ("extend.md", "README.md", "start.md")
    ],
)
def test_the_examples_of_each_page_run_one_after_the_other(
    page: str, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the number of steps."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code in BLOCK.findall(PAGES[page]):
        code = re.sub(r"max_steps=\d+", "max_steps=16", code)
        if language == "python" and page == "ddp.md":  # its ranks run the script again, so it has to be a file
            (given / "script.py").write_text(code)
            subprocess.run([sys.executable, "script.py"], check=True, timeout=240)
        elif language == "python":
            exec(compile(code, page, "exec"), names)
        elif page == "zoo-care.md":
            for command in map(shlex.split, code.splitlines()):
                monkeypatch.setattr(sys, "argv", command)
                with pytest.raises(SystemExit, match=r"^0$"):
                    look_after_a_zoo()


@pytest.mark.slow
def test_the_first_five_minutes_work(nursery: Nursery, tmp_path: Path) -> None:
    """On fewer characters, with fewer steps."""
    few = (*TINY, "split.sources=8", "trainer.enable_progress_bar=false")
    fewer = {"prune": (*few, *TINY_ROUNDS), "pretrain": few, "vote": few, "export": ("measure.seconds=0.05",)}
    for code in (code for language, code in BLOCK.findall(PAGES["start.md"]) if language == "bash"):
        command, *arguments = shlex.split(code)
        name = command.removeprefix("mvp-")
        ended = nursery.run("tests.nursery:run_command", name, *arguments, *fewer[name], cwd=tmp_path)
        assert ended.well, ended.text
    assert {"load.py", "model.onnx"} <= {path.name for path in (tmp_path / "deployed").iterdir()}


# The site and what stands beside the code ---------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = re.findall(r"^::: lightning_mvp\.(.+)$", pages, re.M)
    public = set(lightning_mvp.__all__)
    for module in iter_modules(lightning_mvp.__path__):
        names = getattr(import_module(f"lightning_mvp.{module.name}"), "__all__", ()) if module.ispkg else ()
        public |= {f"{module.name}.{name}" for name in names if name not in lightning_mvp.__all__}
    assert sorted(shown) == sorted(public)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-d", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "start.html", "CHANGELOG.html", "benchmarks/cifar100/report.html"} <= pages.keys()
    for name, page in pages.items():
        assert not re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+', page), name
    assert "<code>&gt;&gt;&gt;" not in pages["reference/trainer.html"]


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == lightning_mvp.__version__
    assert f"\n## {lightning_mvp.__version__} " in (ROOT / "CHANGELOG.md").read_text()
