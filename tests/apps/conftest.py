"""Commands run in this process, on rendered characters few and small, with all output under a temporary folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_module

TINY = (
    "data.options={characters: ABDEGHJK, per_class_train: 12, per_class_val: 4, per_class_test: 6}",
    "data.batch_size=8",
    "split.classes_per_task=3",
    "split.sources=3",
    "split.targets=2",
    "split.held_out_fraction=0",
    "steps=4",
)
TINY_ROUNDS = ("pruning.rounds=2",)
TINY_COMPARE = (*TINY, *TINY_ROUNDS, "source_steps=4", "vote.neighbours=2", "pretrain.steps=2", "workers=1")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed on both streams."""

    code: int
    text: str

    @property
    def line(self) -> str:
        """The text without line breaks, to look for sentences in."""
        return " ".join(self.text.split())


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Hydra and the commands set up logging for a process of their own."""
    loggers = [logging.getLogger(), rank_zero_module.log, *map(logging.getLogger, ("lightning", "lightning.pytorch"))]
    before = [(log.level, log.propagate, list(log.handlers), list(log.filters)) for log in loggers]
    yield
    for log, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.propagate, log.handlers, log.filters = propagate, handlers, filters


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``mvp-<name>`` with overrides as a terminal of 80 columns would."""

    def run_app(name: str, *overrides: str, home: Path) -> Outcome:
        monkeypatch.setenv("LIGHTNING_MVP_HOME", str(home))
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", [f"mvp-{name}", *overrides])
        # Hydra takes the tracer of a coverage run for a debugger, and then shows no errors but raises them.
        monkeypatch.setattr(sys, "gettrace", lambda: None)
        capfd.readouterr()
        try:
            import_module(f"lightning_mvp.apps.{name}").main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return Outcome(code, "".join(capfd.readouterr()))

    return run_app


def modified(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
