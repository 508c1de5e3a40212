"""``mvp-prune once=true``: an entry without training, which a vote takes from; and ``vote.reconstruct``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_mvp.apps.vote import settings_of
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.zoo.zoo import ModelZoo

from ..backbones.recipes import recipe
from .conftest import TINY, Run

ONCE = (*TINY, "once=true")


def test_it_fills_a_zoo_that_a_vote_takes_from(tmp_path: Path, run: Run) -> None:
    torch.manual_seed(0)
    save_weights(create_backbone(recipe("resnet_mini")), tmp_path / "theta0.safetensors")
    own = (f"weights={tmp_path / 'theta0.safetensors'}", f"zoo={tmp_path / 'zoo'}")
    planned = run("prune", *ONCE, *own, "dry_run=true", home=tmp_path)
    assert planned.line == "would run mvp-prune in 1 process. Nothing was done"
    done = run("prune", "-m", *ONCE, *own, "split.task=0,1", home=tmp_path)
    assert done.code == 0, done.text
    # What is trained nowhere does not depend on how it would be.
    again = run("prune", *ONCE, *own, "optim.learning_rate=1", "steps=7", "pruning.rounds=3", home=tmp_path)
    assert "already: skipped" in again.line
    assert run("prune", *ONCE, *own, "reconstruct=0", home=tmp_path).code == 0
    entries = list(ModelZoo(tmp_path / "zoo").entries())
    assert len(entries) == 3
    for entry in entries:
        assert (entry.info["steps"], entry.info["once"], entry.config["rounds"]) == (0, True, 1)
        assert "cut_between_rounds" not in entry.info
        assert entry.info["kept"]["units"] == pytest.approx(0.3, abs=0.02)
    assert sorted(entry.config["training"]["once"]["images"] for entry in entries) == [0, 1000, 1000]
    vote = (*TINY, "vote.neighbours=2", f"zoo={tmp_path / 'zoo'}", "steps=1")
    for options in ((), ("vote.reconstruct=20",)):
        voted = run("vote", *vote, *options, home=tmp_path)
        assert voted.code == 0, voted.text
    reports = [json.loads(path.read_text()) for path in (tmp_path / "voted").glob("*/report.json")]
    assert sorted("reconstruct" in report["seconds"] for report in reports) == [False, True]


def test_a_vote_without_reconstruction_has_the_settings_of_before(tmp_path: Path) -> None:
    zoo = ModelZoo.create(tmp_path / "zoo", None, {}, {"a": 1})
    with initialize_config_module("lightning_mvp.conf", version_base="1.3", job_name="mvp-vote"):
        off, on = (
            settings_of(compose("vote", [f"zoo={zoo.path}", f"vote.reconstruct={images}"]), 1)["vote"]
            for images in (0, 1000)
        )
    assert on == {**off, "reconstruct": 1000}
    assert "reconstruct" not in off


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cut_between_rounds=true", "Expected once=true or cut_between_rounds=true, but got both."),
        ("head_init=random", "Expected head_init=ridge with once=true, but got 'random'"),
        ("reconstruct=1", "Expected argument `reconstruct` to be a number of images, two or more, or 0"),
        ("logger=csv", "Expected logger=none with once=true"),
        ("once=maybe", "Expected `once` to be"),
    ],
)
def test_what_it_cannot_have_is_refused(override: str, words: str, tmp_path: Path, run: Run) -> None:
    done = run("prune", *ONCE, "weights=null", override, home=tmp_path)
    assert done.code == 1
    assert words in done.line
    assert not (tmp_path / "zoos").exists()


def test_a_criterion_of_a_users_own_is_named_on_the_command_line(tmp_path: Path, run: Run) -> None:
    own = "pruning.criterion={_target_: tests.pruning.test_criteria.GradientNorm, scale: 2.0}"
    for way in ("once=true", "once=false"):
        done = run(
            "prune", *TINY, own, way, "pruning.rounds=2", "weights=null", f"zoo={tmp_path / 'zoo'}", home=tmp_path
        )
        assert done.code == 0, done.text
    for entry in ModelZoo(tmp_path / "zoo").entries():
        assert entry.config["criterion"] == {"_target_": "tests.pruning.test_criteria.GradientNorm", "scale": 2.0}
    refused = run("prune", *TINY, "weights=null", "pruning.criterion={_target_: math.floor}", home=tmp_path)
    assert refused.code == 1
    assert "argument `criterion` to be one of ('taylor', 'magnitude', 'random')" in refused.line
