"""`mvp-export` writes what it says, shows what it measured, and refuses what a person can get wrong."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from lightning_mvp.apps.arguments import quoted
from lightning_mvp.apps.export import source_of
from lightning_mvp.backbones import create_backbone, find_groups, random_masks, shrink
from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.source import Source
from lightning_mvp.export.standalone import load
from lightning_mvp.tasks.facts import TaskFacts

from ..callbacks.user import FACTS, RECIPE, UserModule, callback, fit
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
    write_safetensors(Source.from_backbone("pets", small, nn.Linear(8, 3), FACTS), folder)
    (folder / "load.py").unlink()
    return folder


@pytest.mark.slow
def test_a_folder_of_mvp_vote_becomes_every_format(voted: Path, tmp_path: Path, run: Run) -> None:
    done = run("export", f"folder={voted}", *QUICK, home=tmp_path)
    assert done.code == 0, done.text
    folder = tmp_path / "exported" / "pets"
    names = {
        "model.safetensors",
        "recipe.json",
        "load.py",
        "model.pt2",
        "model.onnx",
        "report.json",
        "before_after.png",
    }
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert f"wrote {folder / name}: " in done.text
    report = json.loads((folder / "report.json").read_text())
    assert f"{report['macs']['small']:,}" in done.text
    assert "latency, batch 1" in done.text
    assert "INFO" not in done.text, "the exporters' own log"
    model, _ = load(folder)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    before = modified(folder)
    again = run("export", f"folder={voted}", *QUICK, home=tmp_path)
    assert again.code == 1
    assert f"{folder} exists already and is not overwritten" in again.line
    assert modified(folder) == before
    replaced = run("export", f"folder={voted}", *QUICK, "formats=[safetensors]", "overwrite=true", home=tmp_path)
    assert replaced.code == 0, replaced.text
    assert {path.name for path in folder.iterdir()} == names - {"model.pt2", "model.onnx"}


FACTS_GIVEN = f"facts={json.dumps(FACTS.to_dict())}".replace('"', "")
OWN = """
import torch
from torch import nn
from tests.callbacks.user import UserModule, create_backbone
class Own(UserModule):
    def __init__(self, classes, backbone):
        super().__init__(create_backbone(backbone), nn.Linear(16, classes))
        self.save_hyperparameters(*KEPT)
"""


def source(*overrides: str) -> Source:
    """What a command with these overrides would export."""
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        return source_of(compose("export", quoted(overrides)))


@pytest.mark.parametrize("task", [FACTS, None], ids=["task known", "task given"])
@pytest.mark.parametrize("kept", [("classes", "backbone"), ("backbone",)], ids=["known", "one argument given"])
def test_a_module_of_ones_own_is_made_of_its_checkpoint_and_cut(
    task: TaskFacts | None, kept: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `runtime.prepare` does, which the command runs
    monkeypatch.delitem(sys.modules, "my_own_code", raising=False)
    (tmp_path / "my_own_code.py").write_text(OWN.replace("KEPT", repr(list(kept))))
    made = runpy.run_path("my_own_code.py")["Own"](3, RECIPE)
    pruning = callback(head="classifier", task=task)
    fit(made, pruning).save_checkpoint("epoch=1-step=12.ckpt")
    small = pruning.small_model()

    checkpoint = "checkpoint=epoch=1-step=12.ckpt"
    named = "my_own_code.Own" if len(kept) == 2 else "{_target_: my_own_code.Own, classes: 3}"
    facts = [] if task else [FACTS_GIVEN]
    if task is None:
        with pytest.raises(ValueError, match=r"TaskFacts, because epoch=1-step=12\.ckpt has none"):
            source(checkpoint, f"module={named}")
        with pytest.raises(ValueError, match="each of the head's 3 outputs, but got 2 classes"):
            source(checkpoint, f"module={named}", FACTS_GIVEN.replace("red, ", ""))
    if len(kept) < 2:
        with pytest.raises(ValueError, match=r"made of the hyper-parameters in .*12\.ckpt, but: .* 'classes'\. Give"):
            source(checkpoint, *facts, "module=my_own_code.Own")
    found = source(checkpoint, *facts, f"module={named}")
    assert (found.name, found.facts) == ("epoch=1-step=12", FACTS)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.model(images), small(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("torch.nn.Linear", "`module` to name the class of a LightningModule, as module=package.Class or"),
        ("nowhere.Own", "No module named 'nowhere'"),
        ("tests.callbacks.user.UserModule", "with MVPCallback, but plain.ckpt has no state of one."),
    ],
)
def test_a_module_of_ones_own_that_can_not_be_made_is_refused(
    module: str, words: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    fit(UserModule(), max_steps=1).save_checkpoint("plain.ckpt")
    done = run("export", "checkpoint=plain.ckpt", f"module={module}", FACTS_GIVEN, home=tmp_path / "home")
    assert done.code == 1
    assert words in done.line
    assert "Traceback" not in done.text


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
