"""A model exported whole: every file loaded where lightning_mvp isn't, any number of images, a report that adds up."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_mvp import create_backbone, export_model
from lightning_mvp.backbones import count_macs, count_parameters
from lightning_mvp.export import formats
from lightning_mvp.export.export_report import ExportReport
from lightning_mvp.export.source import Source
from lightning_mvp.export.standalone import load

from ..callbacks.user import FACTS, RECIPE, UserModule, callback, fit
from .conftest import run_elsewhere

BATCHES = (1, 2, 5)
FILES = {"model.safetensors", "recipe.json", "load.py", "model.pt2", "model.onnx", "report.json", "before_after.png"}
ELSEWHERE = """
import onnxruntime
from safetensors.torch import load_file, save_file
from load import load
images, found = load_file("images"), {}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
program = torch.export.load("model.pt2").module()
with torch.no_grad():
    for batch, each in images.items():
        found["safetensors/" + batch] = load(".")[0](each)
        found["pt2/" + batch] = program(each)
        found["onnx/" + batch] = torch.from_numpy(session.run(["logits"], {"images": each.numpy()})[0])
save_file({name: logits.contiguous() for name, logits in found.items()}, "logits")
"""
QUICK: dict[str, Any] = {"seconds": 0.01, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def exported(
    source_of: Callable[[str], Source], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, ExportReport]]:
    """The folder and report of a source, made once; tests must not change them."""
    made: dict[str, tuple[Path, ExportReport]] = {}

    def exported(kind: str) -> tuple[Path, ExportReport]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "exported"
            made[kind] = folder, export_model(source_of(kind), folder, batch_sizes=(1, 4), **QUICK)
        return made[kind]

    return exported


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_every_format_computes_the_same_without_lightning_mvp(
    kind: str, exported: Callable[[str], tuple[Path, ExportReport]], source_of: Callable[[str], Source]
) -> None:
    folder, report = exported(kind)
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in folder.parent.iterdir()} == {"exported"}, "nothing else is left"
    source = source_of(kind)
    save_file({str(batch): source.images(batch) for batch in BATCHES}, folder / "images")
    run_elsewhere("import sys; sys.path.insert(0, '.')\n" + ELSEWHERE, cwd=folder)
    found = load_file(folder / "logits")
    for name in ("images", "logits"):
        (folder / name).unlink()
    with torch.no_grad():
        for batch in BATCHES:
            expected = source.model(source.images(batch))
            assert torch.equal(found[f"safetensors/{batch}"], expected)
            for name in ("pt2", "onnx"):
                assert formats.difference(expected, found[f"{name}/{batch}"]) <= 1e-4
    assert set(report.differences) == {"safetensors", "pt2", "onnx"}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_report_adds_up(
    kind: str, exported: Callable[[str], tuple[Path, ExportReport]], source_of: Callable[[str], Source]
) -> None:
    folder, report = exported(kind)
    source = source_of(kind)
    said = json.loads((folder / "report.json").read_text())
    assert said == report.to_dict()
    assert all(math.isfinite(number) and number >= 0 for number in numbers(said))
    for model, side in ((source.model, "small"), (source.dense(), "dense")):
        assert said["macs"][side] == count_macs(model, source.images(1))
        assert said["parameters"][side] == count_parameters(model)
        assert said["peak_memory"][side] > 4 * count_parameters(model)
    assert said["macs"]["ratio"] == said["macs"]["dense"] / said["macs"]["small"] > 1.5
    assert said["files"] == {
        name: (folder / name).stat().st_size for name in FILES - {"report.json", "before_after.png"}
    }
    assert [each["batch"] for each in said["latency"]] == [1, 4]
    for each in said["latency"]:
        for spread in [each["ratio"], *each["seconds"].values()]:
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    latency = said["latency"][1]
    assert latency["throughput"]["small"] == pytest.approx(4 / latency["seconds"]["small"]["median"])


@pytest.mark.slow
def test_the_report_is_shown_as_a_table(exported: Callable[[str], tuple[Path, ExportReport]]) -> None:
    _, report = exported("resnet")
    console = Console(width=100, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(report)
    shown = capture.get()
    for words in (f"{report.macs.dense:,}", "latency, batch 4", "images a second", "model.onnx"):
        assert words in shown


def test_an_existing_folder_is_left_as_it_is(source_of: Callable[[str], Source], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already and is not overwritten"):
        export_model(source_of("resnet"), tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_format_that_computes_something_else_is_refused_and_leaves_nothing(
    source_of: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_export = formats.export_program

    def wrong(source: Source) -> torch.export.ExportedProgram:
        other = copy.deepcopy(source)
        other.model[1].bias.data.add_(0.01)
        return true_export(other)

    monkeypatch.setattr("lightning_mvp.export.export.export_program", wrong)
    for name in ("pt2", "onnx"):
        with pytest.raises(ValueError, match=rf"Expected model\.{name} to compute what the model computes, to 0\.0001"):
            export_model(source_of("resnet"), tmp_path / "out", formats=["safetensors", name], **QUICK)
    assert not list(tmp_path.iterdir())


def test_without_the_onnx_packages_one_is_told_how_to_go_on(
    source_of: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime is not installed.*lightning-mvp\[onnx\]"):
        export_model(source_of("resnet"), tmp_path / "out", **QUICK)
    formats.require_formats(["safetensors", "pt2"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ["safetensors", "coreml"]}, "`formats` to be some of 'safetensors', 'pt2', 'onnx', but got 'core"),
        ({"formats": ["pt2"]}, "Expected `formats` to hold 'safetensors'"),
        ({"batch_sizes": ()}, "Expected argument `batch_sizes` to be integers of at least 1"),
        ({"batch_sizes": (1, 0)}, "Expected argument `batch_sizes` to be integers of at least 1"),
        ({"seconds": 0.0}, "Expected argument `seconds` to be above 0, but got 0.0"),
        ({"device": "tpu"}, "Expected argument `device` to be 'cpu' or 'cuda', but got 'tpu'"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], words: str, source_of: Callable[[str], Source], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(source_of("resnet"), tmp_path / "out", **{**QUICK, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_module_of_ones_own_is_exported_and_not_changed(tmp_path: Path) -> None:
    pruning = callback(head="classifier")
    fit(UserModule(), pruning)
    small = pruning.small_model()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    small.train()
    report = export_model(small, tmp_path / "out", FACTS, formats=["safetensors"], **{**QUICK, "batch_sizes": (1,)})
    assert report.parameters.small == count_parameters(small) < report.parameters.dense
    assert small.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")[0](images), small.eval()(images))


@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        (create_backbone(RECIPE), None, "Expected argument `facts` to be the task's TaskFacts"),
        (nn.Sequential(nn.Linear(2, 2)), FACTS, "which carries its recipe, .* but got Linear"),
        (nn.Sequential(create_backbone(RECIPE), nn.ReLU()), FACTS, "but got ResNet and ReLU. Hand over MVPCallback"),
    ],
)
def test_a_model_that_nobody_can_rebuild_is_refused(model: nn.Module, facts: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(model, tmp_path / "out", facts, **QUICK)
