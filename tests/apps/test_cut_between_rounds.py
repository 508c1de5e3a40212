"""``mvp-prune cut_between_rounds=true``: the same entry without a Trainer; and what it can't have is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.zoo.zoo import ModelZoo

from ..backbones.recipes import recipe
from .conftest import TINY, TINY_ROUNDS, Run

CUT = (*TINY, *TINY_ROUNDS, "cut_between_rounds=true", "trainer.precision=32-true")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "theta0.safetensors"
    save_weights(create_backbone(recipe("resnet_mini")), path)
    return path


def test_it_fills_the_same_zoo_and_a_vote_takes_from_it(weights: Path, tmp_path: Path, run: Run) -> None:
    own = (f"weights={weights}", f"zoo={tmp_path / 'zoo'}")
    planned = run("prune", *CUT, *own, "dry_run=true", home=tmp_path)
    assert planned.code == 0
    assert "would run mvp-prune in 1 process" in planned.line
    assert run("prune", "-m", *CUT, *own, "split.task=0,1", "storage=bfloat16", home=tmp_path).code == 0
    logs = sorted(text for log in tmp_path.rglob("prune.log") if "round 2 of 2" in (text := log.read_text()))
    assert [[text.count(f"source-00{task}") for task in (0, 1)] for text in logs] == [[4, 0], [0, 4]]
    pictures = [sorted(p.name for p in log.parent.glob("*.png")) for log in tmp_path.rglob("prune.log")]
    assert pictures.count(["images.png", "pruning.png"]) == 2, pictures
    # The same work by zeroing is there already.
    done = run("prune", *TINY, *TINY_ROUNDS, "trainer.precision=32-true", *own, home=tmp_path)
    assert "already: skipped" in done.line
    entries = list(ModelZoo(tmp_path / "zoo").entries())
    assert [entry.facts["name"] for entry in entries] == ["source-000", "source-001"]
    for entry in entries:
        assert entry.info["cut_between_rounds"] is True
        assert entry.info["steps"] == 4
        assert "storage" not in str(entry.config)
    voted = run("vote", *TINY, "vote.neighbours=2", f"zoo={tmp_path / 'zoo'}", home=tmp_path)
    assert voted.code == 0, voted.text


@pytest.mark.slow
def test_ranks_of_its_own_train_one_entry(weights: Path, tmp_path: Path, run: Run) -> None:
    own = (f"weights={weights}", f"zoo={tmp_path / 'zoo'}")
    done = run("prune", *CUT, *own, "trainer.devices=2", "strategy=ddp_cpu", home=tmp_path)
    assert done.code == 0, done.text
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert entry.config["training"]["devices"] == 2
    assert entry.config["training"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.accumulate_grad_batches=2", "Expected trainer.accumulate_grad_batches to be 1 with cut_between"),
        ("trainer.enable_checkpointing=true", "Expected trainer.enable_checkpointing to be false with cut_between"),
        ("+trainer.max_time=00:00:01:00", "Expected no trainer.max_time with cut_between_rounds=true"),
        ("logger=csv", "Expected logger=none with cut_between_rounds=true"),
        ("trainer.precision=16-mixed", "argument `precision` to be one of"),
        ("storage=float16", "Expected `storage` to be one of 'float32', 'bfloat16', but got 'float16'."),
    ],
)
def test_what_it_cannot_have_is_refused(override: str, words: str, tmp_path: Path, run: Run) -> None:
    done = run("prune", *CUT, "weights=null", override, home=tmp_path)
    assert done.code == 1
    assert words in done.line
    assert not (tmp_path / "zoos").exists()
