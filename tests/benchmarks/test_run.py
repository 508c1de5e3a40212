"""The speed benchmarks do the work that they time; what they measure is nobody's business here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RIVALS = ("taylor", "torch_pruning", "oneshot_reconstructed")
NAMES = ("new_task", "filling", "nearest", "merging", "size", "steps", "photographs", "loading", "large_vote")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """Runs a benchmark once: what it printed, and the JSON that it wrote."""
    folder, done = tmp_path_factory.mktemp("benchmarks"), dict[str, tuple[str, dict[str, Any]]]()

    def run(name: str) -> tuple[str, dict[str, Any]]:
        if name not in done:
            command = [sys.executable, str(BENCHMARKS / "run.py"), name, "--smoke", "--repetitions", "2"]
            ran = subprocess.run(
                [*command, "--json", str(folder)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert ran.returncode == 0, ran.stderr[-3000:]
            done[name] = ran.stdout, json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return done[name]

    return run


def finite(value: Any) -> bool:
    """Whether all numbers in it but the bounds of an interval, which a single value has not, are finite."""
    if isinstance(value, dict):
        return all(finite(each) for key, each in value.items() if key not in ("low", "high"))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES])
def test_each_prints_a_table_and_writes_what_it_measured(name: str, smoke: Callable) -> None:
    printed, report = smoke(name)
    assert [line for line in printed.splitlines() if line.startswith("|--")], "a table in Markdown"
    assert report["benchmark"] == name
    assert report["settings"]["smoke"] is True
    assert report["results"]
    assert finite(report["results"])
    assert {"lightning-mvp", "torch"} <= set(report["versions"])
    text = json.dumps(report)
    assert str(Path.home()) not in text
    assert "/tmp/" not in text, "no path of a machine"


def test_all_takes_the_options_of_each() -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "all", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--study", "--data", "--budgets", "--entries", "--merging-neighbours", "--filling-weights"):
        assert option in shown


@pytest.mark.xdist_group("new_task")
def test_a_votes_seconds_are_all_accounted_for(smoke: Callable) -> None:
    study = smoke("new_task")[1]["results"]["study"]
    methods = {run["method"] for run in study["runs"]}
    assert methods == {"mvp-vote", "mvp-vote, all entries scored", *RIVALS}
    for run in study["runs"]:
        assert sum(run["stages"].values()) == pytest.approx(run["seconds"])
        assert 0 <= run["accuracy"] <= 1
    assert set(study["ratios"]) == {*RIVALS}


@pytest.mark.xdist_group("nearest")
def test_recall_is_a_share_and_the_catalogue_has_a_size(smoke: Callable) -> None:
    results = smoke("nearest")[1]["results"]
    assert all(0 <= share <= 1 for each in results["study"]["targets"] for share in each["recall"].values())
    assert [row["entries"] for row in results["made"]["rows"]] == [10, 30]
    assert all(row["catalogue_bytes"] > 0 for row in results["made"]["rows"])


@pytest.mark.xdist_group("size")
def test_the_parts_of_a_file_add_up(smoke: Callable) -> None:
    for size in smoke("size")[1]["results"]["sizes"]:
        parts = ("need", "facts", "names", "importance", "prototypes", "other")
        assert sum(size[part] for part in parts) == pytest.approx(size["file"])
