"""The command that a vote prints runs as it stands, whatever the zoo's backbone and weights."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from safetensors.torch import load_file

from lightning_mvp.apps.scratch import hydra_value
from lightning_mvp.zoo.zoo import ModelZoo

from .conftest import TINY, TINY_ROUNDS, Run

# resnet14t, narrow: a model of timm's that no option of `backbone` names, and an argument of it.
TIMM = ("backbone=timm", "backbone.recipe.model=resnet14t", "backbone.recipe.input_size=32")
SLOW = pytest.mark.slow
NARROW = ("+backbone.recipe.arguments.channels=[8,16,16,32]",)


@pytest.mark.parametrize(
    "value",
    [
        {"patch_embed.proj": [["Conv2d", {"bias": False, "eps": 1e-5}], ["ReLU", {}]], "none": None},
        *("a b,c='x'\\'", "/tmp/a=b/theta0.safetensors", "1e5", "3", "null", "True", "back\\", "x:y", "~"),
    ],
)
def test_values_are_written_as_hydra_reads_them(value: object) -> None:
    found = OverridesParser.create().parse_override(f"+key={hydra_value(value)}").value()
    assert (found.text if isinstance(found, QuotedString) else found) == value


def printed(text: str) -> list[str]:
    """The command among what a vote prints."""
    (line,) = (line for line in text.splitlines() if line.startswith("    mvp-prune "))
    return shlex.split(line)[1:]


@pytest.mark.parametrize(
    ("backbone", "weights", "typed"),
    [
        pytest.param(("backbone=vit_mini_hybrid",), "random", (), id="hybrid"),
        pytest.param((*TIMM, *NARROW), "file", ("backbone=resnet_mini_s2",), id="timm, another typed", marks=SLOW),
        pytest.param((*TIMM, *NARROW), "random", (*TIMM, *NARROW), id="timm, typed", marks=SLOW),
        pytest.param((), "parent", (), id="parent", marks=SLOW),
    ],
)
def test_it_runs_for_any_backbone_and_weights(
    backbone: tuple[str, ...], weights: str, typed: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    zoo, file = tmp_path / "a zoo", tmp_path / "theta.safetensors"
    quick = (*TINY, "trainer.enable_progress_bar=false", "steps=2")
    if weights != "random":
        ratio = ("pruning.pruning_ratio=0.5",) if weights == "parent" else ()
        assert run("pretrain", *quick, *TINY_ROUNDS, *backbone, *ratio, f"output={file}", home=tmp_path).code == 0
    own = "weights=null" if weights == "random" else f"weights={file}"
    done = run("prune", *quick, *TINY_ROUNDS, *backbone, own, f"zoo='{zoo}'", home=tmp_path)
    assert done.code == 0, done.text
    voted = run("vote", *quick, *typed, "vote.neighbours=1", f"zoo='{zoo}'", "split.task=1", home=tmp_path)
    assert voted.code == 0, voted.text
    words = printed(voted.text)
    assert {"split.kind=target", "split.task=1", "steps=20"} <= set(words)
    file.unlink(missing_ok=True)  # what it needs is in the zoo
    from_scratch = run("prune", *words, home=tmp_path)
    assert from_scratch.code == 0, from_scratch.text
    made = ModelZoo(next((tmp_path / "voted").glob("*-from-scratch")))
    assert made.fingerprint == ModelZoo(zoo).fingerprint, "the same backbone, groups and θ⁰"
    (entry,) = made.entries()
    assert entry.facts["name"] == "target-001"
    report = json.loads(next((tmp_path / "voted").glob("*/report.json")).read_text())
    assert report["settings"]["voters"]


def test_weights_of_a_zoo_are_those_that_its_entries_begin_with(tmp_path: Path, run: Run) -> None:
    zoo = tmp_path / "zoo"
    done = run("prune", *TINY, *TINY_ROUNDS, "weights=null", f"zoo={zoo}", home=tmp_path)
    assert done.code == 0, done.text
    again = (f"weights={zoo}/theta0.safetensors", f"zoo={tmp_path}/other")
    assert run("prune", *TINY, *TINY_ROUNDS, *again, home=tmp_path).code == 0
    one, two = (load_file(folder / "theta0.safetensors") for folder in (zoo, tmp_path / "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = run("prune", *TINY, *TINY_ROUNDS, "backbone=vit_mini", *again, home=tmp_path)
    assert other.code == 1
    assert "does not fit the backbone" in other.line
