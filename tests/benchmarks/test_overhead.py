"""The overhead benchmark does the work that it times; what it measures is nobody's business here."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
VARIANTS = ["plain", "plain, again", "MVPCallback", "ModelPruning", "Torch-Pruning"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    path = tmp_path_factory.mktemp("overhead") / "overhead.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--json", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    spec = spec_from_file_location("overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["overhead"] = module_from_spec(spec)  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["overhead"]


@pytest.fixture(params=["resnet_mini", "vit_tiny"])
def result(request: pytest.FixtureRequest, smoke: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return smoke[1]["results"][request.param]


@pytest.mark.slow
def test_both_tables_of_both_backbones_have_a_row_for_each_variant(smoke: tuple[str, dict[str, Any]]) -> None:
    rows = [line.split("|")[1].strip() for line in smoke[0].splitlines() if line.startswith("| ")]
    assert rows == ["variant", *VARIANTS] * 4


@pytest.mark.slow
def test_ratios_are_finite_positive_and_inside_their_intervals(result: dict[str, Any]) -> None:
    assert list(result["summary"]) == VARIANTS
    for row in result["summary"].values():
        for clock in ("wall", "cpu"):
            assert math.isfinite(row[clock]["ratio"])
            assert 0 < row[clock]["low"] <= row[clock]["ratio"] <= row[clock]["high"]


@pytest.mark.slow
def test_every_repetition_has_one_block_of_each_variant_with_its_steps(result: dict[str, Any]) -> None:
    for repetition in range(2):
        blocks = [block for block in result["blocks"] if block["repetition"] == repetition]
        assert sorted(block["variant"] for block in blocks) == sorted(VARIANTS)
        assert all(len(block["wall_ms"]) == len(block["cpu_ms"]) == 1 for block in blocks)


@pytest.mark.slow
def test_masks_are_active_in_the_timed_steps_of_those_that_mask(result: dict[str, Any]) -> None:
    zeros = {variant: row["zeros"] for variant, row in result["summary"].items()}
    assert zeros["plain"] == zeros["plain, again"] == zeros["Torch-Pruning"] == 0
    assert 0.25 < zeros["ModelPruning"] < 0.35
    assert 0.25 < zeros["MVPCallback"] < 0.35


@pytest.mark.slow
def test_those_that_prune_have_a_round_and_the_plain_ones_none(result: dict[str, Any]) -> None:
    had_one = {variant: row["round_ms"] > 0 for variant, row in result["summary"].items()}
    assert had_one == {variant: not variant.startswith("plain") for variant in VARIANTS}


@pytest.mark.slow
def test_the_json_says_versions_and_settings_and_no_path(smoke: tuple[str, dict[str, Any]]) -> None:
    report = smoke[1]
    assert {"lightning", "lightning-mvp", "timm", "torch", "torch-pruning"} <= set(report["versions"])
    assert report["settings"]["threads"] == 1
    assert str(Path.home()) not in json.dumps(report)
    assert "overhead.json" not in json.dumps(report)


def test_a_ratio_is_to_the_plain_step_of_the_same_turn(overhead: ModuleType) -> None:
    def block(variant: str, repetition: int, *wall_ms: float) -> Any:
        return overhead.Block(variant, repetition, list(wall_ms))

    # The machine was ten times slower for a while, and one step of each was disturbed.
    blocks = [block("plain", 0, 10.0, 100.0, 99.0), block("MVPCallback", 0, 11.0, 110.0, 11.0)]
    blocks += [block("MVPCallback", 1, 12.0, 900.0, 120.0), block("plain", 1, 10.0, 10.0, 100.0)]
    assert overhead.ratios(blocks, "MVPCallback", "wall_ms") == pytest.approx([1.1, 1.2])


def test_an_error_in_a_variants_thread_ends_the_run_and_names_the_variant(overhead: ModuleType) -> None:
    runner = overhead.Runner(overhead.Block("plain", 0), None, 4, overhead.parse(["--smoke"]))
    with pytest.raises(RuntimeError, match="Training 'plain' failed") as error:
        runner.turn()
    assert isinstance(error.value.__cause__, AttributeError)


def test_the_interval_is_that_of_the_median(overhead: ModuleType) -> None:
    assert overhead.bootstrap_interval([2.0] * 5, seed=0) == (2.0, 2.0)
    low, high = overhead.bootstrap_interval([1.0] * 99 + [1000.0], seed=0)
    assert (low, high) == (1.0, 1.0)
    # Order statistics of a binomial: the median of 1..99 lies within 40..60 in 95 of 100 resamplings.
    low, high = overhead.bootstrap_interval(list(range(1, 100)), seed=0)
    assert (low, high) == (pytest.approx(40, abs=3), pytest.approx(60, abs=3))


def test_a_number_below_one_is_refused_by_name(overhead: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.parse(["--batch-size", "0"])
    assert "Expected --batch-size to be an integer of at least 1, but got 0." in capsys.readouterr().err
