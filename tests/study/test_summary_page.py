"""One page over several reports, computed from their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.study.results import Difference
from lightning_mvp.study.summary_page import Report, write_page
from lightning_mvp.study.summary_plots import _limits, differences_of_sections

from .small_study import settings


def run_on(task: str, method: str, accuracy: float, steps: int = 100, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "steps": steps,
        "accuracy": accuracy,
        "start_seconds": 1.0,
        "fit_seconds": 1.0,
        "parameters": 100,
        "macs": 2_000_000,
        "classes": ["a", "b"],
        "pruning_ratio": 0.5,
        "zoo": "parent",
        "draw": 0,
        **more,
    }


def trial(task: str, name: str, accuracy: float, macs: int = 2_000_000) -> dict[str, Any]:
    return {
        "task": task,
        "trial": name,
        "method": "mvp",
        "steps": 100,
        "changes": {},
        "accuracy": accuracy,
        "curve": [[0, 0.5], [100, accuracy]],
        "start_seconds": 1.0,
        "fit_seconds": 1.0,
        "macs": macs,
    }


def write_runs(folder: Path, runs: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    labels = dict.fromkeys(run.get("label", "") for run in runs)
    studies = {f"study-{label}": settings(label=label).to_dict() for label in labels}
    (folder / "results.json").write_text(json.dumps({"settings": studies}))
    (folder / "results.jsonl").write_text("\n".join(map(json.dumps, runs)) + "\n")
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> list[Path]:
    runs = []
    for label, better in (("seen", 0.02), ("held-out", -0.05)):
        for index in range(3):
            task = f"target-{index:03d}"
            runs.append(run_on(task, "mvp", 0.7 + 0.01 * index, label=label))
            runs.append(run_on(task, "nearest", 0.7 + 0.01 * index - better, label=label))
            runs.append(run_on(task, "taylor", 0.6, label=label))
            runs.append(run_on(task, "taylor", 0.75, steps=1000, label=label))
    choices = [trial(f"development-{i:03d}", "default", 0.7) for i in range(3)]
    choices += [trial(f"development-{i:03d}", "neighbours.4", 0.72) for i in range(3)]
    choices += [trial(f"development-{i:03d}", "neighbours.1", 0.7 + 0.02 * (i - 1)) for i in range(3)]
    choices += [trial(f"development-{i:03d}", "ratio.above", 0.6, macs=1_000_000) for i in range(3)]
    others = [trial("development-000", "warm", 0.7), trial("development-000", "lr0.1", 0.7)]
    return [
        write_runs(tmp_path / "out" / "general", runs + others),
        write_runs(tmp_path / "out" / "ablations", choices),
    ]


def test_each_kind_of_target_is_a_row_of_paired_differences(reports: list[Path], tmp_path: Path) -> None:
    accuracy = write_page(tmp_path / "out", reports, note="A note.", command="make it", learned="Learned.")
    assert accuracy == pytest.approx(0.71)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| seen | 3 | 2.0 M | 71.0 | +2.0 [+2.0, +2.0] | +11.0 [+10.0, +12.0] | −4.0 [−5.0, −3.0] |" in text
    assert "| held-out | 3 | 2.0 M | 71.0 | −5.0 [−5.0, −5.0] |" in text
    assert "random" not in text  # nobody ran it
    assert text.index("A note.") < text.index("Learned.") < text.index("## MVP minus its rivals")
    assert "- **held-out**: 1 tasks of 3 classes of stripes." in text
    assert "[general](general/report.md)" in text
    assert "    make it" in text
    for picture in ("differences.png", "ablations.png"):
        assert f"({picture})" in text
        assert (tmp_path / "out" / picture).stat().st_size > 1000


def test_choices_are_set_against_the_default_and_say_where_sizes_differ(reports: list[Path], tmp_path: Path) -> None:
    write_page(tmp_path / "out", reports, note="", command="")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| neighbours | 4: **+2.0 [+2.0, +2.0]**; 1: +0.0 [−2.0, +2.0] |" in text.replace("−0.0", "+0.0")
    assert "| ratio | above (1.0 M): **−10.0 [−10.0, −10.0]** |" in text
    assert "warm" not in text  # trials of another report, which has no default


def grown_run(task: str, name: str, accuracy: float, **more: Any) -> dict[str, Any]:
    return {**run_on(task, "grown", accuracy), **trial(task, name, accuracy), "variant": True, **more}


def test_a_grown_zoo_is_set_against_the_better_taylor_and_its_orders_are_averaged(tmp_path: Path) -> None:
    runs = []
    for index in range(3):
        task, better = f"target-{index:03d}", 0.01 * index
        for name, accuracy in (
            ("grown-8.A@100", 0.70 + better),
            ("grown-8.B@100", 0.72 + better),
            ("grown-4.A@100", 0.1),  # another size of the same zoo
            ("taylor@1000", 0.65 + better),
            ("taylor-mimic@1000", 0.76 + better),
            ("once-mimic@100", 0.6 + better),
        ):
            runs.append(grown_run(task, name, accuracy, label="seen"))
        runs.append(run_on(task, "mvp", 0.69, label="seen") | {"trial": "mvp@100", "changes": {}, "curve": [[0, 0.5]]})
    runs = [run for run in runs if (run["trial"], run["task"]) != ("once-mimic@100", "target-002")]
    folder = write_runs(tmp_path / "out" / "grown", runs)
    assert write_page(tmp_path / "out", [folder], note="", command="") == pytest.approx(0.72)
    text = (tmp_path / "out" / "report.md").read_text()
    row = "| seen | 3 | 2.0 M | 50.0 | 72.0 | −5.0 [−5.0, −5.0] *m* | +11.0 [+11.0, +11.0] (2) | +3.0 [+2.0, +4.0] |"
    assert row in text
    assert "## MVP minus its rivals" not in text
    assert (tmp_path / "out" / "grown.png").stat().st_size > 1000


def test_variants_that_are_no_grown_zoo_leave_a_report_its_methods(tmp_path: Path) -> None:
    runs = [run_on("a", "mvp", 0.7), run_on("a", "nearest", 0.6), grown_run("a", "grown@5", 0.6)]
    write_page(tmp_path / "out", [write_runs(tmp_path / "out" / "smoke", runs)], note="", command="")
    assert "| smoke | 1 |" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_without_a_report_is_named_before_anything_is_written(reports: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing-here, but found no results\.jsonl"):
        write_page(tmp_path / "page", [*reports, tmp_path / "nothing-here"], note="", command="")
    with pytest.raises(ValueError, match="runs of MVP"):
        write_page(tmp_path / "page", reports[1:], note="", command="")
    assert not (tmp_path / "page").exists()


def test_runs_of_older_reports_have_no_label(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "cnn", [run_on("target-000", "mvp", 0.7), run_on("target-000", "nearest", 0.6)])
    (section,) = Report(folder).sections()
    assert section.title == "cnn"


def test_a_difference_far_beyond_the_others_is_an_arrow_that_says_it_and_no_other_is_cut() -> None:
    found = {
        "near": Difference(0.01, 0.0, 0.02),
        "wide": Difference(-0.02, -0.06, 0.03),
        "far": Difference(0.38, 0.3, 0.5),
    }
    sections = {f"kind {n}": {"nearest": found["near"], "generic": found["wide"]} for n in range(6)}
    sections["kind 5"] = {"nearest": found["far"]}
    panels = {"against": {"nearest": "the nearest model", "generic": "one model"}, "nobody": {"taylor": "Taylor"}}
    (axes,) = differences_of_sections(sections, panels, "Ours", {"kind 0": "10 classes"}).axes
    assert [text.get_text() for text in axes.texts] == ["+38 →"]
    low, high = axes.get_xlim()
    assert low < -6 < 3 < high < 30
    assert axes.get_yticklabels()[0].get_text() == "kind 0\n10 classes"
    assert len(axes.patches) == 3, "every second band is shaded, so that groups are told apart"
    assert _limits([Difference(0.0, float("nan"), float("nan"))] * 2)[0] < 0, "one target, and no difference"
