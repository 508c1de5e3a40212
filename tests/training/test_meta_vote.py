"""From a zoo that the callback filled to a small model that trains, is saved and leaves Lightning."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from lightning_mvp import MetaVoteModule, ModelZoo, TaskDataModule, TaskFacts, create_backbone
from lightning_mvp.backbones import count_macs, count_parameters
from lightning_mvp.callbacks.bar import RoundInBar
from lightning_mvp.fitting.fit import fit_quietly, make_trainer
from lightning_mvp.tasks.preprocessing import preprocess

ZooOf = Callable[[str], ModelZoo]
EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_vote_starts_small_and_learns(kind: str, zoo_of: ZooOf, target: TaskDataModule):
    zoo = zoo_of(kind)
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=2, learning_rate=0.02)
    dense = create_backbone(zoo.recipe)
    assert count_parameters(module.backbone) < 0.75 * count_parameters(dense)
    assert module.report["parameters"] == count_parameters(module.backbone)
    assert module.report["dense_macs"] == count_macs(dense, EXAMPLE)
    assert module.report["widths"] == {group: size // 2 for group, size in zoo.group_sizes.items()}
    before = module.accuracy_on(*target.test_images())
    fit_quietly(module, target, 20)
    after = module.accuracy_on(*target.test_images())
    assert before > 1 / 3
    assert after > 0.8
    assert after >= before


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_checkpoint_needs_no_zoo(kind: str, zoo_of: ZooOf, target: TaskDataModule, tmp_path: Path):
    shutil.copytree(zoo_of(kind).path, tmp_path / "zoo")
    module = MetaVoteModule.from_zoo(tmp_path / "zoo", target, neighbours=2)
    trainer = make_trainer(2, **QUIET)
    trainer.fit(module, datamodule=target)
    trainer.save_checkpoint(tmp_path / "voted.ckpt")
    shutil.rmtree(tmp_path / "zoo")

    loaded = MetaVoteModule.load_from_checkpoint(tmp_path / "voted.ckpt", weights_only=True)
    module.eval()
    loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(EXAMPLE), module(EXAMPLE))
    assert loaded.report == module.report
    assert loaded.facts == target.facts


def test_from_zoo_says_what_it_did(zoo_of: ZooOf, target: TaskDataModule, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2)
    names = [neighbour["name"] for neighbour in module.report["neighbours"]]
    assert len(names) == 2
    for word in (*names, "shared classes", "two or more", "parameters", "MACs", "units of layer1.residual"):
        assert word in caplog.text


def test_a_bar_in_ones_own_trainer_counts_no_epochs_that_are_not_known(zoo_of: ZooOf, target: TaskDataModule):
    module, text = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=1), io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": text, "force_terminal": True})
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = L.Trainer(max_steps=2, accelerator="cpu", callbacks=[bar], **quiet)
    for _ in range(2):
        trainer.fit(module, datamodule=target)
    assert "Epoch 0" in text.getvalue()
    assert "/-2" not in text.getvalue()
    assert sum(isinstance(each, RoundInBar) for each in trainer.callbacks) == 1


def test_options_reach_the_vote(zoo_of: ZooOf, target: TaskDataModule):
    zoo = zoo_of("resnet")
    far = MetaVoteModule.from_zoo(zoo, target, neighbours=1, similarity="farthest")
    near = MetaVoteModule.from_zoo(zoo, target, neighbours=1)
    assert far.report["neighbours"][0]["name"] != near.report["neighbours"][0]["name"]
    narrow = MetaVoteModule.from_zoo(zoo, target, neighbours=3, pruning_ratio=0.75, temperature=0.1)
    assert all(width == zoo.group_sizes[group] // 4 for group, width in narrow.report["widths"].items())
    assert sum(narrow.report["coefficients"].values()) == pytest.approx(1)
    best = near.report["neighbours"][0]["name"]
    without = MetaVoteModule.from_zoo(zoo, target, neighbours=1, exclude=(best,))
    assert without.report["neighbours"][0]["name"] != best


def test_the_number_of_neighbours_with_the_best_start_is_taken(zoo_of: ZooOf, target: TaskDataModule):
    zoo = zoo_of("resnet")
    chosen = MetaVoteModule.from_zoo(zoo, target, neighbours=3, best_of=(1, 2, 8))
    alone = {count: MetaVoteModule.from_zoo(zoo, target, neighbours=count) for count in (1, 2, 3)}
    starts = {str(count): module.accuracy_on(*target.val_images()) for count, module in alone.items()}
    assert chosen.report["starts"] == starts
    best = min(alone, key=lambda count: (-starts[str(count)], count))
    assert len(chosen.report["neighbours"]) == best
    assert chosen.report["evidence"] == alone[3].report["evidence"] is not None
    for name, tensor in alone[best].state_dict().items():
        assert torch.equal(tensor, chosen.state_dict()[name]), name


def test_prototypes_serve_too(zoo_of: ZooOf, target: TaskDataModule):
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, similarity="prototypes")
    assert all(neighbour["score"] <= 1 for neighbour in module.report["neighbours"])


def test_a_head_may_start_at_random(zoo_of: ZooOf, target: TaskDataModule):
    ridge, chance = (
        MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, head_init=init) for init in ("ridge", "random")
    )
    images, labels = target.train_images()
    assert ridge.accuracy_on(images, labels) > chance.accuracy_on(images, labels)
    with pytest.raises(ValueError, match="`head_init`"):
        MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2, head_init="zeros")  # type: ignore[arg-type]


def test_an_empty_zoo_and_no_zoo_are_refused(zoo_of: ZooOf, target: TaskDataModule, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="Expected a zoo"):
        MetaVoteModule.from_zoo(tmp_path, target)
    zoo = zoo_of("resnet")
    ModelZoo.create(tmp_path / "empty", zoo.recipe, zoo.theta0(), zoo.group_sizes)
    with pytest.raises(ValueError, match="empty"):
        MetaVoteModule.from_zoo(tmp_path / "empty", target)


def test_fewer_tasks_than_neighbours_warns_and_uses_all(zoo_of: ZooOf, target: TaskDataModule):
    with pytest.warns(UserWarning, match="3"):
        module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=9)
    assert len(module.report["neighbours"]) == 3


def test_each_entry_of_the_zoo_says_what_it_was_pruned_for(zoo_of: ZooOf, target: TaskDataModule):
    zoo = zoo_of("vit")
    assert zoo.verify() == dict.fromkeys(zoo.names)
    assert [TaskFacts.from_dict(zoo[name].facts).name for name in zoo.names] == ["first", "second", "third"]
    assert {group.rpartition(".")[2] for group in zoo.group_sizes} == {"mlp", "heads"}


def test_the_plain_module_is_the_same_function(zoo_of: ZooOf, target: TaskDataModule):
    module = MetaVoteModule.from_zoo(zoo_of("resnet"), target, neighbours=2)
    plain = module.to_torch()
    images, labels = target.test_images()
    with torch.no_grad():
        predictions = plain(preprocess(images, target.facts)).argmax(1)
    assert (predictions == labels).float().mean().item() == pytest.approx(module.accuracy_on(images, labels))
    assert not any("lightning_mvp" in type(part).__module__ for part in plain.modules())
    assert not any(part.training for part in plain.modules())
    assert all(part.training for part in (*module.backbone.modules(), module.head)), "it can be trained further"
