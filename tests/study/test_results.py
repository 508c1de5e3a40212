"""From runs to means, intervals, sentences and tables."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from lightning_mvp.study.finished_study import Study
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.records import write_record
from lightning_mvp.study.report_paragraphs import results_table, sizes_differ, verdicts
from lightning_mvp.study.results import (
    Difference,
    Interval,
    Row,
    break_even,
    hubs,
    interval,
    paired_bootstrap,
    steps_to_reach,
    summarise,
    verdict,
)

from .small_study import settings


def run_of(method: str, target: int, accuracy: float, seconds: float = 2.0) -> dict[str, Any]:
    return {
        "task": f"target-{target:03d}",
        "method": method,
        "steps": 40,
        "accuracy": accuracy,
        "start_seconds": seconds / 2,
        "fit_seconds": seconds / 2,
        "parameters": 100 + target,
        "macs": 1000,
    }


def row(low: float, high: float) -> Row:
    difference = Difference((low + high) / 2, low, high)
    return Row("taylor", METHODS["taylor"].full, 40, Interval(0.5, 0.1), 1.0, 10, 10, difference)


def test_the_interval_is_scipys_student_t() -> None:
    values = [0.61, 0.7, 0.58, 0.66, 0.9]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values))
    found = interval(values)
    assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_covers_the_mean_in_95_of_100_samples() -> None:
    draw = random.Random(0)
    found = [interval([draw.gauss(3.0, 2.0) for _ in range(4)]) for _ in range(1000)]
    assert 0.93 < sum(abs(one.mean - 3.0) <= one.half for one in found) / 1000 < 0.97


def test_a_single_target_has_a_mean_and_no_interval() -> None:
    found = interval([0.25])
    assert found.mean == 0.25
    assert math.isnan(found.half)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "MVP wins against iterative Taylor, 40 steps: +2.0 points [+1.0, +3.0]."),
        (-0.03, -0.01, "MVP does not win against iterative Taylor, 40 steps: −2.0 points [−3.0, −1.0]."),
        (-0.01, 0.03, "No clear difference of MVP to iterative Taylor, 40 steps: +1.0 points [−1.0, +3.0]."),
        (math.nan, math.nan, "No clear difference of MVP to iterative Taylor, 40 steps: n/a points [n/a, n/a]."),
    ],
)
def test_the_verdict_follows_the_paired_interval(low: float, high: float, words: str) -> None:
    assert verdict(row(low, high)) == words


def test_differences_are_paired_over_the_targets_both_have() -> None:
    runs = [run_of("mvp", target, value) for target, value in enumerate([0.5, 0.7, 0.9])]
    runs += [run_of("dense", target, value) for target, value in enumerate([0.4, 0.6])]
    mvp, dense = summarise(runs)
    assert mvp.mvp_minus is None
    assert dense.mvp_minus is not None
    assert dense.mvp_minus.mean == pytest.approx(0.1)
    assert dense.mvp_minus.high - dense.mvp_minus.low == pytest.approx(0.0, abs=1e-9)
    assert (mvp.targets, dense.targets) == (3, 2)
    assert (mvp.accuracy.mean, dense.accuracy.mean) == (pytest.approx(0.7), pytest.approx(0.5))
    assert (mvp.parameters, mvp.seconds) == (101, 2.0)


def test_those_that_mvp_does_not_beat_come_first() -> None:
    runs = [run_of("mvp", target, 0.6 + target / 100) for target in range(3)]
    runs += [run_of("oneshot_taylor", target, 0.3 + target / 100) for target in range(3)]
    runs += [run_of("dense", target, 0.9 + target / 100) for target in range(3)]
    first, second = verdicts(summarise(runs))
    assert first.startswith("MVP does not win against dense")
    assert second.startswith("MVP wins against one-shot Taylor")


def test_without_an_mvp_run_there_are_no_verdicts() -> None:
    assert verdicts(summarise([run_of("dense", 0, 0.5)])) == []


def test_the_table_fits_80_columns_with_every_method_at_imagenet_size() -> None:
    runs = [run_of(method, target, 0.1 + 0.3 * target) for method in METHODS for target in range(3)]
    for run in runs:
        run |= {"steps": 10_000, "start_seconds": 12_345.6, "parameters": 25_557_032, "macs": 4_089_000_000}
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(results_table(summarise(runs), "all methods"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert cells == [method.short for method in METHODS.values()], "a line for each, its label unbroken"


def test_pruned_models_of_other_sizes_are_pointed_out() -> None:
    same = [replace(row(0, 1), method=method) for method in ("mvp", "taylor")]
    assert sizes_differ([*same, replace(same[0], method="dense", macs=99)]) == []
    assert "not of one size" in sizes_differ([same[0], replace(same[1], macs=9)])[0]


def test_labels_are_told_apart() -> None:
    for label in ("full", "short"):
        assert len({getattr(method, label) for method in METHODS.values()}) == len(METHODS)


def test_a_method_with_several_budgets_has_a_row_for_each_and_is_set_against_the_first() -> None:
    runs = [run_of("mvp", target, 0.6) | {"steps": steps} for steps in (40, 300) for target in range(3)]
    first, second = summarise(runs)
    assert (first.steps, first.mvp_minus, second.steps) == (40, None, 300)
    assert second.mvp_minus == Difference(0.0, 0.0, 0.0)


def test_targets_of_one_name_in_two_zoos_are_two_targets() -> None:
    runs = [run_of(method, 0, 0.5 + draw / 10) | {"draw": draw} for method in ("mvp", "dense") for draw in (0, 1)]
    assert [row.targets for row in summarise(runs)] == [2, 2]


def test_zoos_of_two_kinds_have_rows_of_their_own() -> None:
    runs = [run_of("mvp", target, 0.6) for target in range(2)]
    runs += [run_of("mvp", target, 0.5) | {"zoo": "theta0"} for target in range(2)]
    ours, plain = summarise(runs)
    assert (ours.mvp_minus, plain.zoo) == (None, "theta0")
    assert plain.mvp_minus is not None
    assert plain.mvp_minus.mean == pytest.approx(0.1)
    assert plain.label == f"{ours.label}, entries from θ⁰"


def test_the_bootstrap_interval_is_near_the_normal_one() -> None:
    draw = random.Random(0)
    values = [draw.gauss(1.0, 2.0) for _ in range(200)]
    found = paired_bootstrap(values)
    half = 1.96 * stats.tstd(values) / math.sqrt(200)
    assert found.mean == pytest.approx(sum(values) / 200)
    assert found.low == pytest.approx(found.mean - half, abs=0.05)
    assert found.high == pytest.approx(found.mean + half, abs=0.05)


def test_targets_are_resampled_within_their_zoo() -> None:
    """Two zoos that differ and targets that don't: whatever is drawn, the mean is the same."""
    found = paired_bootstrap([0.0, 0.0, 1.0, 1.0], strata=[0, 0, 1, 1])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert paired_bootstrap([0.0, 0.0, 1.0, 1.0]).low < 0.3


def test_steps_to_reach_reads_the_mean_curve_in_log_steps() -> None:
    curves = [[(100, 0.4), (1000, 0.8)], [(100, 0.6), (1000, 0.8)]]
    assert steps_to_reach(curves, [0.65, 0.65]).steps == pytest.approx(math.sqrt(100 * 1000))
    assert steps_to_reach(curves, [0.9, 0.9]).steps == math.inf
    assert steps_to_reach(curves, [0.3, 0.3]).steps == 100, "exactly: a report says 'at most 100' then"
    found = steps_to_reach(curves, [0.65, 0.65])
    assert found.low <= found.steps <= found.high


def test_a_targets_neighbours_count_once_however_many_budgets_it_was_run_with() -> None:
    runs = [run_of("mvp", 0, 0.5) | {"steps": steps, "neighbours": [{"name": "a"}]} for steps in (1, 2)]
    assert hubs(runs) == [("a", 1)]


def test_the_zoo_is_repaid_when_saved_seconds_reach_its_cost(tmp_path: Path) -> None:
    for index in range(3):
        write_record(tmp_path, f"source-{index:03d}", {"seconds": 10.0})
    runs = [run_of("mvp", 0, 0.5, seconds=2.0), run_of("taylor", 0, 0.5, seconds=7.0)]
    write_record(tmp_path, "parent", {"seconds": 5.0})
    assert Study(tmp_path, settings()).zoo_seconds == 35
    assert break_even(30.0, runs) == pytest.approx(30 / 5)


@pytest.mark.parametrize("slower", [[], [run_of("taylor", 0, 0.5, seconds=2.0)]])
def test_a_zoo_that_saves_nothing_is_never_repaid(slower: list[dict[str, Any]]) -> None:
    assert break_even(30.0, [run_of("mvp", 0, 0.5, seconds=2.0), *slower]) is None


def test_runs_are_loaded_in_the_order_of_methods_and_only_where_done(tmp_path: Path) -> None:
    for method, target in (("dense", 0), ("mvp", 1)):
        write_record(tmp_path, f"target-{target:03d}--{method}@4", run_of(method, target, 0.5))
    split = {"classes_per_task": 3, "sources": 3, "targets": 2, "held_out_fraction": 0.0}
    runs = Study(tmp_path, settings(split=split, methods=("mvp", "dense"))).runs
    assert [(run["method"], run["task"]) for run in runs] == [("mvp", "target-001"), ("dense", "target-000")]
