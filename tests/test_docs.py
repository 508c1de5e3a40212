"""The documentation names tests that exist, and each row of its table is backed by one."""

from __future__ import annotations

import re
from pathlib import Path

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
