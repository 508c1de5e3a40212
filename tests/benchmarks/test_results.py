"""What benchmarks/README.md says of a new task is what the measured runs come to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def new_task() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    import new_task

    yield new_task
    sys.path.remove(str(BENCHMARKS))
    for name in ("new_task", "clock", "common", "studies"):
        del sys.modules[name]


NEW_TASK = sorted(path.stem for path in (BENCHMARKS / "results").glob("new_task*.json"))


@pytest.mark.parametrize("name", NEW_TASK)
def test_the_tables_of_a_new_task_are_those_of_its_runs(name: str, new_task: ModuleType) -> None:
    report = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    studies = {key: value for key, value in report["results"].items() if "runs" in value}
    assert len(studies) == 1
    (study,) = studies.values()
    tables, measured = new_task.evaluate([new_task.Run(**run) for run in study["runs"]], "", report["settings"]["seed"])
    assert measured["ratios"] == study["ratios"]
    for table in tables:
        for row in zip(*(column.cells for column in table.columns), strict=True):
            assert f"| {' | '.join(map(str, row))} |" in README


def test_what_the_first_page_says_of_speed_is_measured() -> None:
    first = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"[0-9.]+ × \[[0-9., ]+\]", first)
    assert len(told) == 2
    (most,) = re.findall(r"at most ([0-9.]+ ×) on EfficientNet", first)
    for figure in (*told, most):
        assert f"| {figure.replace(' ×', '')}" in README, figure


def test_every_benchmark_has_its_results() -> None:
    files = (BENCHMARKS / "results").glob("*.json")
    names = {re.sub("_(grown_.*|resnet.*|vit.*)", "", path.stem) for path in files}
    assert names == {"new_task", "filling", "nearest", "merging", "size", "steps", "photographs", "loading"}
    for path in (BENCHMARKS / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not json.loads(text)["settings"]["smoke"]
        assert "/tmp/" not in text, "no path of a machine"
