"""What benchmarks/README.md says of a new task is what the measured runs come to."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("name", ["new_task_resnet", "new_task_vit"])
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


def test_every_benchmark_has_its_results() -> None:
    names = {path.stem.split("_r")[0].split("_v")[0] for path in (BENCHMARKS / "results").glob("*.json")}
    assert names == {"new_task", "filling", "nearest", "merging", "size", "steps", "photographs", "loading"}
    for path in (BENCHMARKS / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not json.loads(text)["settings"]["smoke"]
        assert "/tmp/" not in text, "no path of a machine"
