"""The how-to for configuration files of one's own: its files are written, and its commands run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from .apps.conftest import TINY, Run, run

__all__ = ["run"]

PAGE = (Path(__file__).parents[1] / "docs" / "own_config.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
# The data of the tests, and no steps: those are the page's own.
SMALL = TINY[:-1]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_of_a_section_does_what_it_says(
    section: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_mvp.apps.estimate.training_seconds", lambda *_: 1.0)
    for name, text in re.findall(r"```yaml\n# (mine/\S+)\n(.*?)```", SECTIONS[section], re.S):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (tmp_path / "mine").is_dir()
    (block,) = re.findall(r"```bash\n(.*?)```", SECTIONS[section], re.S)
    for command, *words in map(shlex.split, block.splitlines()):
        done = run(command.removeprefix("mvp-"), *words, *SMALL, home=tmp_path / "home")
        assert done.code == 0, done.text
        assert "Nothing was done" in done.line or "2 planned" in done.line


def test_the_page_has_each_kind_that_goes_by_its_import_path() -> None:
    assert [group for group in ("optim", "callbacks", "logger", "experiment") if f"# mine/{group}/" not in PAGE] == []
