"""The documentation names tests that exist, and each row of its table is backed by one."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_every_row_about_the_trainer_names_tests_that_exist() -> None:
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    rows = [line for line in (ROOT / "docs" / "trainer.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 30
    for row in rows:
        *_, outcome, _, named = (cell.strip() for cell in row.strip("|").split("|"))
        assert outcome in ("works", "refused", "warns", "stops"), row
        names = re.findall(r"`(\w+)`", named)
        assert names, row
        assert set(names) <= tests, set(names) - tests


def test_each_fault_can_be_planted() -> None:
    faults = yaml.safe_load((ROOT / "tests" / "faults" / "faults.yaml").read_text())
    assert [fault["name"] for fault in faults if fault["old"] not in (ROOT / fault["file"]).read_text()] == []
    assert [name for fault in faults for name in fault.get("tests", ()) if not (ROOT / name).exists()] == []
