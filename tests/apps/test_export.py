"""`mvp-export` writes what it says, shows what it measured, and refuses what a person can get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_mvp.backbones import create_backbone, find_groups, random_masks, shrink
from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.source import Source
from lightning_mvp.export.standalone import load

from ..callbacks.user import FACTS, RECIPE
from .conftest import Run, modified

QUICK = ("measure.batch_sizes=[1]", "measure.seconds=0.01", "device=cpu")


@pytest.fixture(scope="module")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like one of mvp-vote."""
    folder = tmp_path_factory.mktemp("voted") / "pets"
    torch.manual_seed(0)
    backbone = create_backbone(RECIPE)
    groups = find_groups(backbone, torch.zeros(1, 3, 16, 16), check=False)
    small = shrink(backbone, groups, random_masks(groups, 0.5, seed=0))
    write_safetensors(Source.of("pets", small, nn.Linear(8, 3), FACTS), folder)
    (folder / "load.py").unlink()
    return folder


def test_a_folder_of_mvp_vote_becomes_every_format(voted: Path, tmp_path: Path, run: Run) -> None:
    done = run("export", f"folder={voted}", *QUICK, home=tmp_path)
    assert done.code == 0, done.text
    folder = tmp_path / "exported" / "pets"
    names = {"model.safetensors", "recipe.json", "load.py", "model.pt2", "model.onnx", "report.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert f"wrote {folder / name}: " in done.text
    report = json.loads((folder / "report.json").read_text())
    assert f"{report['macs']['small']:,}" in done.text
    assert "latency, batch 1" in done.text
    assert "INFO" not in done.text, "the exporters' own log"
    assert load(folder)(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    before = modified(folder)
    again = run("export", f"folder={voted}", *QUICK, home=tmp_path)
    assert again.code == 1
    assert f"{folder} exists already and is not overwritten" in again.line
    assert modified(folder) == before
    replaced = run("export", f"folder={voted}", *QUICK, "formats=[safetensors]", "overwrite=true", home=tmp_path)
    assert replaced.code == 0, replaced.text
    assert {path.name for path in folder.iterdir()} == names - {"model.pt2", "model.onnx"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [],
            "Expected one of checkpoint=FILE, folder=FOLDER (as mvp-vote writes it) or zoo=FOLDER entry=NAME, but got",
        ),
        (["folder=a", "zoo=b"], "but got folder and zoo."),
        (
            ["folder=nowhere"],
            "recipe.json and model.safetensors in nowhere, as mvp-vote writes them, but nowhere/recipe",
        ),
        (["checkpoint=nowhere.ckpt"], "Expected a checkpoint at nowhere.ckpt, but there is no such file."),
        (["zoo=nowhere", "entry=x"], "Expected a zoo at nowhere, but there is no such folder."),
        (["folder=3"], "Expected `folder` to be text or null, but got 3."),
        (["folder=a", "measure.batch_sizes=1"], "Expected `measure.batch_sizes` to be a list, but got 1."),
        (["folder=a", "formats=[coreml]"], "Expected `formats` to be some of 'safetensors', 'pt2', 'onnx', but got"),
        (
            ["folder=a", "formats=onnx"],
            "Expected `formats` to be a list, but got 'onnx'. Write formats=[safetensors,onnx]",
        ),
    ],
)
def test_it_refuses_in_a_sentence(overrides: list[str], words: str, tmp_path: Path, run: Run) -> None:
    done = run("export", *overrides, home=tmp_path)
    assert done.code == 1
    assert words in done.line
    assert "Traceback" not in done.text
    assert not (tmp_path / "exported").exists()


def test_help_shows_an_example_without_importing_torch() -> None:
    script = (
        "import sys; sys.argv[1:] = ['--help']\nimport lightning_mvp.apps.export as app\n"
        "try:\n    app.main()\nfinally:\n    heavy = {'torch', 'timm', 'lightning', 'onnx'} & set(sys.modules)\n"
        "    print('heavy imports:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Example:  mvp-export " in done.stdout
    assert done.stdout.rstrip().endswith("heavy imports: []")
