"""Checkpoints, folders and zoo entries all give the model that they hold, physically small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_mvp import ImageData, MetaVoteModule, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.backbones import count_parameters
from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.source import Source, from_checkpoint, from_folder, from_zoo
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.zoo.rebuild import as_tensors

from ..callbacks.user import FACTS, RECIPE, UserModule, make_trainer
from ..training.conftest import CLASSES, fill, part, task


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("colours", CLASSES, part(8, 0), part(4, 1), part(4, 2))


@pytest.fixture(scope="module")
def target(data: ImageData) -> TaskDataModule:
    return task(data, "abc", "target")


@pytest.fixture(scope="module")
def zoo(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> ModelZoo:
    return fill(data, tmp_path_factory.mktemp("zoo") / "zoo", RECIPE)


def test_a_pruned_checkpoint_is_cut_at_its_masks(target: TaskDataModule, tmp_path: Path) -> None:
    module = TaskModule.for_task(create_backbone(RECIPE), target.facts, learning_rate=0.01)
    pruning = MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=2, head="head")
    trainer = make_trainer(pruning, max_steps=6)
    trainer.fit(module, datamodule=target)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    source = from_checkpoint(tmp_path / "pruned.ckpt")
    assert source.name == "pruned"
    assert source.recipe["kept"] == pruning.masks.kept
    assert count_parameters(source.model) < 0.5 * count_parameters(source.dense())
    images = source.images(4)
    with torch.no_grad():
        torch.testing.assert_close(source.model(images), module.eval()(images), atol=1e-5, rtol=1e-4)


def test_a_voted_checkpoint_is_small_already(zoo: ModelZoo, target: TaskDataModule, tmp_path: Path) -> None:
    module = MetaVoteModule.from_zoo(zoo, target, neighbours=2)
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, datamodule=target)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    source = from_checkpoint(tmp_path / "model.ckpt")
    assert source.name == tmp_path.name, "a file called model says less than its folder"
    assert source.facts == target.facts
    images = source.images(4)
    with torch.no_grad():
        torch.testing.assert_close(source.model(images), module.eval()(images), atol=1e-6, rtol=1e-4)


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.strategy.connect(UserModule())
    trainer.save_checkpoint(tmp_path / "user.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"Expected a checkpoint of TaskModule or MetaVoteModule at .*user\.ckpt"):
        from_checkpoint(tmp_path / "user.ckpt")
    with pytest.raises(FileNotFoundError, match=r"Expected a checkpoint at .*nowhere"):
        from_checkpoint(tmp_path / "nowhere")


def test_what_was_exported_can_be_exported_again(source_of, tmp_path: Path) -> None:
    source = source_of("vit")
    write_safetensors(source, tmp_path / "first")
    again = from_folder(tmp_path / "first")
    assert (again.name, again.recipe, again.facts) == ("first", source.recipe, source.facts)
    with torch.no_grad():
        assert torch.equal(again.model(source.images(3)), source.model(source.images(3)))


def test_a_folder_without_a_sound_recipe_is_refused(source_of, tmp_path: Path) -> None:
    write_safetensors(source_of("resnet"), tmp_path)
    whole = json.loads((tmp_path / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": whole["recipe"]}))
    with pytest.raises(ValueError, match="can't be read: KeyError"):
        from_folder(tmp_path)
    other = {**whole, "recipe": {**whole["recipe"], "kept": {"layer1.residual": 5}}}
    (tmp_path / "recipe.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="does not fit the backbone"):
        from_folder(tmp_path)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"recipe\.json is missing"):
        from_folder(tmp_path)


def test_a_zoo_entry_computes_what_its_arrays_say(zoo: ModelZoo, target: TaskDataModule) -> None:
    name = zoo.names[0]
    source = from_zoo(zoo.path, name)
    entry = zoo[name]
    assert source.facts.to_dict() == entry.facts
    assert source.recipe["kept"] == {group: int(mask.sum()) for group, mask in entry.masks.items()}
    for ours, stored in ((source.model[0], entry.weights), (source.model[1], entry.head)):
        assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in as_tensors(stored).items())
    images, labels = target.train_images()
    with torch.no_grad():
        right = source.model(preprocess(images, source.facts)).argmax(1) == labels
    assert right.float().mean() > 0.5


@pytest.mark.parametrize("entry", [None, "frist"])
def test_an_entry_that_is_not_there_is_refused_with_those_that_are(zoo: ModelZoo, entry: str | None) -> None:
    with pytest.raises(ValueError, match=f"Expected `entry` to be the name of one of the 3 .*{zoo.names[0]}.*{entry}"):
        from_zoo(zoo.path, entry)


def test_a_module_without_head_stays_without(source_of) -> None:
    backbone = create_backbone(RECIPE).eval()
    source = Source.from_module(backbone, FACTS)
    assert [type(layer) for layer in source.dense()] == [type(backbone)]
    assert source.model[0] is not backbone
    with torch.no_grad():
        assert torch.equal(source.model(source.images(2)), backbone(source.images(2)))


def test_a_timm_classifier_inside_the_backbone_goes_along() -> None:
    backbone = create_backbone({**RECIPE, "arguments": {**RECIPE["arguments"], "num_classes": 3}})
    source = Source.from_module(backbone, FACTS)
    assert source.dense()(source.images(2)).shape == (2, 3)
    assert isinstance(source.dense()[0].fc, nn.Linear)
