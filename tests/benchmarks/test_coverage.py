"""The committed coverage table says what the code does now, and the benchmark measures what it says."""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.backbones import count_macs, count_parameters, find_groups, random_masks, shrink

from ..backbones.families import coverage, coverage_models, coverage_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"


def committed() -> dict[str, list[str]]:
    """Model → the cells of its row in the documentation."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(coverage_tables.BEGIN)
    table, end, _ = rest.partition(coverage_tables.END)
    assert end
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] == "| `"]
    return {row[0].strip("`"): row for row in rows}


def notes(model: str) -> list[str]:
    """What the documentation says is left out of a model."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"\n- `{model}`\n")
    lines = rest.splitlines()
    return [line.removeprefix("  - ") for line in takewhile(lambda line: line.startswith("  - "), lines)]


def test_the_committed_table_has_every_model_once_in_order() -> None:
    assert list(committed()) == list(coverage_models.MODELS)


QUICK = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "eva02_tiny_patch14_224")
FAST = [pytest.param(model, id=model) for model in QUICK]
SLOW = [pytest.param(m, id=m, marks=pytest.mark.slow) for m in coverage_models.MODELS if m not in QUICK]


@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_the_committed_row_says_what_the_code_does_now(model: str) -> None:
    row = committed()[model]
    now = coverage.structure(model)
    assert row[: len(coverage_tables.STRUCTURE)] == coverage_tables.structure_cells(now)
    assert coverage_tables.reasons(now) == notes(model)
    if not now.refusal:
        assert float(row[len(coverage_tables.STRUCTURE) + coverage_tables.MEASURED.index("difference")]) <= 1e-9


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run over two models, one of which is refused, writes as JSON."""
    path = tmp_path_factory.mktemp("coverage") / "coverage.json"
    before = DOCUMENT.read_bytes()
    models = ["mobilenetv3_small_100", "eva02_tiny_patch14_224"]
    coverage.main(["--min-run-time", "0", "--json", str(path), "--models", *models])
    assert DOCUMENT.read_bytes() == before, "only a run over all models may write the table"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_what_is_measured_is_finite_and_positive(report: dict[str, Any]) -> None:
    row = report["models"][0]
    times = [row[name] for name in ("find_seconds", "check_seconds", "step_seconds", "latency_ms")]
    for value in (*times, *row["latency"].values()):
        assert math.isfinite(value)
        assert value > 0
    assert 0 <= row["difference"] <= 1e-9
    assert 0 < row["parameters"]["0.9"] < row["parameters"]["0.5"] < 1
    assert 0 < row["macs"]["0.9"] < row["macs"]["0.5"] < 1


@pytest.mark.slow
def test_a_refused_model_has_a_row_with_the_reason(report: dict[str, Any]) -> None:
    row = coverage_tables.Row(**report["models"][1])
    assert "blocks.0.attn" in row.refusal
    assert coverage_tables.structure_cells(row)[1] == "refused"
    told = coverage_tables.reasons(row)
    assert told[0].startswith("refused: Expected a backbone with units that can be pruned")
    assert len(told[0]) < len(row.refusal) / 2, "twelve blocks have one reason"
    assert f"\n  - {told[0]}" in coverage_tables.markdown([row])


@pytest.mark.slow
def test_the_json_says_versions_and_no_path(report: dict[str, Any]) -> None:
    assert set(report["versions"]) == {"lightning-mvp", "torch", "timm", "torch-pruning"}
    assert str(Path.home()) not in json.dumps(report)


def test_ratios_of_the_table_are_those_counted_on_a_cut_model() -> None:
    backbone, example = coverage_models.built("mobilenetv3_small_100", coverage_tables.FULL_SIZE)
    groups = find_groups(backbone, example, check=False)
    small = shrink(backbone, groups, random_masks(groups, 0.5, coverage_models.SEED))
    told = coverage.structure("mobilenetv3_small_100")
    assert told.parameters["0.5"] == count_parameters(small) / count_parameters(backbone)
    assert told.macs["0.5"] == count_macs(small, example) / count_macs(backbone, example)


def test_notes_of_one_reason_stand_together() -> None:
    notes = ["a.0: left out, `a.1` (LayerNorm) mixes", "b.0: left out, `b.1` (LayerNorm) mixes", "c: left out, odd"]
    told = coverage_tables.reasons(coverage_tables.Structure("any", left_out=notes))
    assert told == ["a.0: left out, `a.1` (LayerNorm) mixes (and 1 like it)", "c: left out, odd"]


def test_the_table_replaces_what_is_between_the_markers_and_nothing_else() -> None:
    document = f"before\n{coverage_tables.BEGIN}\nold\n{coverage_tables.END}\nafter\n"
    new = coverage_tables.with_table(document, "new", coverage_tables.BEGIN, coverage_tables.END)
    assert new == f"before\n{coverage_tables.BEGIN}\n\nnew\n\n{coverage_tables.END}\nafter\n"
    assert coverage_tables.with_table(new, "new", coverage_tables.BEGIN, coverage_tables.END) == new
    with pytest.raises(ValueError, match=r"Expected coverage\.md to hold the lines"):
        coverage_tables.with_table("no markers", "new", coverage_tables.BEGIN, coverage_tables.END)


def test_an_unknown_model_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        coverage.parse(["--models", "resnet81"])
    assert "knows, but got 'resnet81'." in capsys.readouterr().err
