"""``backbone.target=package.module:function``: a zoo of a backbone of one's own votes and is exported by commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp import MVPCallback, TaskFacts, create_backbone, trust_backbone
from lightning_mvp.backbones import targets
from lightning_mvp.export.standalone import load

from ..backbones.own_nets import make
from ..callbacks.user import UserModule, make_trainer
from .conftest import TINY, Run

TARGET = "tests.backbones.own_nets:make"


def fill(zoo: Path) -> None:
    torch.manual_seed(0)
    theta0 = make().state_dict()
    for number in range(2):
        facts = TaskFacts(f"task-{number}", ("a", "b", "c"), 32, (0.5,) * 3, (0.25,) * 3)
        images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
        module = UserModule(make(), nn.Linear(12, 3))
        module.net.load_state_dict(theta0)
        mvp = MVPCallback(
            *("random", 0.5), rounds=1, steps_per_round=1, backbone="net", head="classifier", task=facts, zoo=zoo
        )
        make_trainer(mvp, max_steps=2).fit(module, DataLoader(TensorDataset(images, labels), 6))


def test_it_votes_and_is_exported_and_no_file_makes_us_run_it(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_TRUSTED", {})
    zoo, voted, out = (tmp_path / name for name in ("zoo", "voted", "out"))
    with pytest.warns(UserWarning, match=r"No name of timm's .* Sequential.*backbone\.target=") as warned:
        fill(zoo)
    assert sum("No name of timm's" in str(each.message) for each in warned) == 1
    own = (*TINY, "vote.neighbours=2", f"zoo={zoo}", f"output={voted}")
    refused = run("vote", *own, home=tmp_path)
    assert refused.code == 1
    assert "give backbone.target=package.module:function" in refused.line
    done = run("vote", *own, f"backbone.target={TARGET}", home=tmp_path)
    assert done.code == 0, done.text
    assert json.loads((voted / "recipe.json").read_text())["recipe"]["model"] == TARGET

    targets._TRUSTED.clear()
    options = ("formats=[safetensors]", "measure.seconds=0.01", "measure.batch_sizes=[1]", f"output={out}")
    refused = run("export", f"folder={voted}", *options, home=tmp_path)
    assert "what a file names is not run" in refused.line
    done = run("export", f"folder={voted}", *options, f"backbone.target={TARGET}", home=tmp_path)
    assert done.code == 0, done.text
    model, transform = load(out)
    assert model(transform(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))).shape == (1, 3)
    (entry, _) = sorted(path.stem for path in (zoo / "tasks").iterdir())
    of_zoo = (f"zoo={zoo}", f"entry={entry}", *options, "overwrite=true", f"backbone.target={TARGET}")
    assert run("export", *of_zoo, home=tmp_path).code == 0


@pytest.mark.parametrize("target", ["nowhere.at.all:make", "json", "json:nothing"])
def test_what_is_no_function_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"`backbone\.target` to be package\.module:function"):
        trust_backbone(target)
    with pytest.raises(ValueError, match=r"is not run|a name that timm"):
        create_backbone({"model": target})
