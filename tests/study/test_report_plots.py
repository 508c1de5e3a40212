"""What a picture says is not an accident of which targets were put into it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lightning_mvp.study.accuracy_plots import (
    accuracy_against_steps,
    accuracy_and_size,
    grown_against_steps,
)
from lightning_mvp.study.entries_plot import accuracy_against_entries
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.report_plots import (
    correlation,
    overlap_by_group,
    similarity_against_shared_classes,
    widths_per_group,
)
from lightning_mvp.study.study_pictures import redraw

GENERAL = Path(__file__).parents[2] / "benchmarks" / "cifar100" / "general"


def about(figure: Figure) -> str:
    """What stands below the title."""
    return figure.texts[1].get_text()


def rankings_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rankings of all entries, from the runs in which all of them voted."""
    votes = [run for run in runs if run["method"] == "all_vote"]
    return [{"similarities": run["neighbours"], "classes": len(run["classes"])} for run in votes]


def target(classes: int, scores: list[float], shared: list[int]) -> dict[str, Any]:
    pairs = zip(scores, shared, strict=True)
    return {"classes": classes, "similarities": [{"score": score, "shared_classes": count} for score, count in pairs]}


def test_targets_of_several_class_counts_give_the_correlation_that_each_has_alone():
    """Five classes: higher scores, fewer shared; pooled, the sign is wrong."""
    few, many = target(5, [-1.0, -0.9], [0, 1]), target(20, [-2.5, -2.4], [2, 3])
    pooled = [each for ranking in (few, many) for each in ranking["similarities"]]
    assert correlation([each["shared_classes"] for each in pooled], [each["score"] for each in pooled]) < -0.8
    alone = target(10, [-1.5, -1.5], [0, 0])
    figure = similarity_against_shared_classes([few, many, alone])
    assert about(figure).endswith("Correlation within a target 1.00")
    assert [axes.get_title("left") for axes in figure.axes] == [f"1 target of {count} classes" for count in (5, 10, 20)]
    first = figure.axes[0].collections[0].get_offsets()[0]
    assert first[1] == pytest.approx(1 - 1.0 / 1.6094379)
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 1], "a mean of targets that share nothing says nothing"


def test_a_measure_that_is_not_leep_is_drawn_as_it_is():
    figure = similarity_against_shared_classes([target(5, [0.2, 0.4], [0, 0])], "Similarity (prototypes)")
    assert about(figure).endswith("within a target n/a")
    assert figure.axes[0].collections[0].get_offsets()[0][1] == pytest.approx(0.2)


def test_in_the_committed_runs_leep_goes_with_shared_classes_within_targets():
    runs = [json.loads(line) for line in (GENERAL / "results.jsonl").read_text().splitlines()]
    assert about(similarity_against_shared_classes(rankings_of(runs))).endswith("within a target 0.69")


def run_of(method: str, steps: int = 100, task: str = "a", accuracy: float = 0.5, **more: Any) -> dict[str, Any]:
    curve = [[0, 0.2], [steps, accuracy]]
    base = {"method": method, "steps": steps, "task": task, "accuracy": accuracy, "curve": curve, "changes": {}}
    return {**base, "macs": 10, **more}


def test_numbers_of_steps_are_ticks_and_every_point_stands_at_its_own():
    runs = [run_of("mvp", steps, task) for steps in (0, 10, 100) for task in "ab"]
    runs += [run_of(method, 100, task) for method in ("nearest", "all_vote", "generic", "dense") for task in "ab"]
    runs += [run_of("taylor", steps, task) for steps in (100, 1000) for task in "ab"]
    lines, rows = accuracy_against_steps(runs).axes
    assert [tick.get_text() for tick in lines.get_xticklabels()] == ["0", "10", "100", "1,000"]
    assert [list(line.get_xdata()) for line in lines.lines] == [[0, 10, 100], [100, 1000]]
    assert {text.get_text() for text in lines.texts} == {"Meta-Vote Pruning", "iterative Taylor"}
    named = [label.get_text() for label in rows.get_yticklabels()]
    assert {"Meta-Vote Pruning", "nearest model", "dense, not pruned", "not pruned"} < set(named)


def test_a_grown_zoo_and_its_rivals_stand_at_paired_differences():
    """The rival was run on the easier target only; its own mean would put it above the vote."""
    vote = {"a": 0.5, "b": 0.9}
    runs = [run_of("grown", 100, task, accuracy, trial="grown-9.A@100") for task, accuracy in vote.items()]
    runs += [run_of("grown", 100, task, 0.99, trial="grown-20@100") for task in "ab"]  # another size of the zoo
    runs += [run_of("taylor", 1000, "b", 0.8, trial="taylor-mimic@1000")]
    runs += [run_of("dense", 100, "c", 0.8, trial="dense@100")]  # a target that the vote has not reached yet
    (axes,) = grown_against_steps(runs).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    ends = {text.get_text(): line for text, line in zip(axes.texts, dots[::2], strict=True)}
    assert ends["grown by use"].get_xydata().tolist() == [[0, pytest.approx(20)], [100, pytest.approx(70)]]
    assert ends["iterative Taylor, mimicking"].get_xydata().tolist() == [[1000, pytest.approx(60)]]
    assert [line.get_xdata().tolist() for line in dots[1::2]] == [[], [1000]], "open: fewer targets"
    assert grown_against_steps(runs[-1:]) is None, "no vote"


def test_a_panel_has_at_most_six_lines():
    methods = [name for name in METHODS if name != "mvp"][:8]
    runs = [run_of(method, steps, task) for method in ["mvp", *methods] for steps in (10, 100) for task in "ab"]
    panels = accuracy_against_steps(runs).axes[:2]
    assert sorted(len(axes.lines) for axes in panels) == [4, 5]
    assert sum(len(axes.texts) for axes in panels) == 9


def test_the_smallest_study_has_its_pictures_too():
    """Runs so short that they were never validated; two zoo tasks, whose one pair has no correlation."""
    runs = [run_of(method, 4, curve=[]) for method in ("mvp", "dense")]
    lines, _ = accuracy_against_steps(runs).axes
    assert {int(x) for line in lines.lines for x in line.get_xdata()} == {4}
    assert accuracy_and_size({0.5: runs[:1], 0.6: [run_of("mvp", 4, "b")]}, 4) is None
    row = OverlapRow(0.5, "conv", 0, 32, 16.0, 0.6, math.nan, 0.3, 0.4, *[math.nan] * 4)
    above = overlap_by_group([row]).axes
    assert [axes.get_title(loc="left") for axes in above] == ["50% of units removed"]


def test_widths_that_are_equal_by_construction_are_not_drawn():
    dense = run_of("dense", widths={"conv": 32, "mlp": 200})
    narrow = {"conv": 22, "mlp": 140}
    runs = [dense, run_of("mvp", widths=narrow), run_of("taylor", widths={"conv": 23, "mlp": 141})]
    assert widths_per_group(runs) is None
    figure = widths_per_group([*runs, run_of("taylor", task="b", widths={"conv": 10, "mlp": 160})])
    assert figure is not None
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv  (32)", "mlp  (200)"]
    assert [round(x) for x in axes.lines[1].get_xdata()] == [69, 70], "percent of the dense backbone"


def test_zoos_that_grew_otherwise_are_lines_of_their_own_and_orders_are_one():
    growths = {"A": Growth(), "B": Growth(order=1), "one": Growth(neighbours=1)}
    runs = []
    for growth, entries, accuracy, more in (
        ("A", 8, 0.5, {}),
        ("A", 50, 0.6, {}),
        ("B", 50, 0.8, {}),
        ("one", 50, 0.7, {"vote.neighbours": 1}),
        ("one", 50, 0.4, {"vote.neighbours": 8}),
        ("A", 50, 0.3, {"optim.mimic": 0}),
    ):
        changes = {"vote.growth": growth, "vote.entries": entries, "optim.mimic": 2, **more}
        runs.append(run_of("grown", accuracy=accuracy, changes=changes))
    runs.append(run_of("mvp", accuracy=0.45, changes={"vote.entries": 50, "optim.mimic": 2}))
    assert accuracy_against_entries(runs[1:], growths) is None, "one size only: nothing grows"
    figure = accuracy_against_entries(runs, growths)
    assert figure is not None
    (axes,) = figure.axes
    found = dict(
        zip([text.get_text() for text in axes.texts], [list(line.get_ydata()) for line in axes.lines], strict=True)
    )
    assert {name: [round(y) for y in line] for name, line in found.items()} == {
        "grown by use": [50, 70],
        "grown by use, no mimicking": [30],
        "independent entries": [45],
        "one net, task after task": [70],
        "one net, task after task, 8 vote": [40],
    }


def test_a_finished_report_is_drawn_anew_from_its_own_files(tmp_path: Path):
    for name in ("report.md", "results.json", "results.jsonl"):
        (tmp_path / name).write_bytes((GENERAL.parent / "efficientnet" / name).read_bytes())
    text = (tmp_path / "report.md").read_text()
    with_widths = text.replace("## Again\n", "![Units.](widths.png)\n\nUnits.\n\n## Again\n")
    (tmp_path / "report.md").write_text(with_widths)
    (tmp_path / "widths.png").write_bytes(b"old")
    assert redraw(tmp_path) == ["accuracy.png"]
    assert (tmp_path / "report.md").read_text() == text, "the picture that says nothing is gone; all else is as it was"
    assert not (tmp_path / "widths.png").exists()
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
