"""Private names of Lightning, Hydra and Torch-Pruning: each is still there, and none is used outside its file."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn

import lightning_mvp
from lightning_mvp import MaskExport, MVPCallback, PrunedCheckpoint, find_groups
from lightning_mvp import lightning_internals as internals
from lightning_mvp.apps import hydra_internals

from .callbacks.user import UserModule, callback, fit, make_trainer

ROOT = Path(lightning_mvp.__file__).parent
FILES = ("lightning_internals.py", "apps/hydra_internals.py", "backbones/torch_pruning_internals.py")
FILES += ("tasks/torchvision_internals.py",)
# Of torch, Python and timm: not what these files are about.
OTHERS = {"_exit", "_forward_hooks", "_forward_pre_hooks", "_parameters", "_buffers", "_foreach_mul", "_foreach_mul_"}
OTHERS |= {"_BatchNorm", "_tensor_name", "_trainer"}


def defined(tree: ast.AST) -> set[str]:
    """Names that a file gives to methods, functions and attributes."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    annotated = [node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return names | {node.attr for node in stored} | {node.id for node in annotated if isinstance(node, ast.Name)}


def test_private_names_of_others_are_used_in_the_files_that_list_them_only():
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
    methods = {entry.partition("(")[0] for entry in internals.CHECKPOINT_METHODS}
    ours = set().union(*map(defined, trees.values())) - methods
    found = {
        (name, node.attr)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if node.attr not in ours | OTHERS and name not in FILES
    }
    assert found == {("callbacks/checkpoint.py", name) for name in methods}
    imported = {
        (name, alias.name)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(("lightning.", "hydra.", "torch_pruning"))
        for alias in node.names
        if alias.name.startswith("_") and name not in FILES
    }
    assert not imported


def test_what_is_read_from_a_trainer_is_there(tmp_path: Path):
    seen: dict[str, Any] = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen["step"], seen["saved"] = internals.logged_step(trainer), internals.dump_checkpoint(trainer)
            seen["averages"] = list(internals.averaged_models(trainer))

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    fit(UserModule(), Look(), WeightAveraging(), checkpoint, max_steps=3, enable_checkpointing=True)
    assert (seen["step"], seen["saved"]["global_step"]) == (2, 3)  # the axis of what is logged begins at 0
    assert len(seen["averages"]) == 1
    assert internals.latest_checkpoint(checkpoint) == checkpoint.best_model_path != ""
    trainers = [make_trainer(sync_batchnorm=sync, strategy="ddp") for sync in (False, True)]
    assert [internals.converts_batch_norms(trainer) for trainer in trainers] == [False, True]
    assert isinstance(trainers[0].strategy, L.pytorch.strategies.DDPStrategy)


def test_a_compiled_module_is_told_from_another():
    plain, called, compiled = nn.ReLU(), nn.ReLU(), torch.compile(nn.ReLU())
    called.compile()
    assert [internals.is_compiled(module) for module in (plain, called, compiled)] == [False, True, True]
    assert type(internals.uncompiled(compiled)) is nn.ReLU
    module = L.LightningModule()
    module._compiler_ctx = {"compiler": "dynamo"}
    assert internals.is_compiled(module)
    assert hasattr(L.LightningModule(), "_compiler_ctx")


@pytest.mark.parametrize("entry", internals.CHECKPOINT_METHODS)
def test_a_checkpoint_method_that_is_gone_is_refused_before_training(entry: str, monkeypatch: pytest.MonkeyPatch):
    best, (name, _, parameters) = PrunedCheckpoint(monitor="loss"), entry.partition("(")
    if parameters:
        monkeypatch.setattr(ModelCheckpoint, name, lambda self, *arguments: None)
    else:
        monkeypatch.delattr(best, name)
    with pytest.raises(RuntimeError, match=rf"a Lightning whose ModelCheckpoint has {name} as in version 2\.6"):
        best.setup(make_trainer(callback()), UserModule(), "fit")


def test_a_checkpoint_that_another_way_made_the_best_is_removed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def keeps_everything(self: ModelCheckpoint, trainer: L.Trainer, *_: Any) -> None:
        self.best_model_path = str(tmp_path / "unpruned.ckpt")
        trainer.save_checkpoint(self.best_model_path)

    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", keeps_everything)
    best = PrunedCheckpoint(tmp_path)
    with pytest.raises(RuntimeError, match=r"to keep only pruned models as the best, but .*unpruned\.ckpt"):
        fit(UserModule(), callback(), best, enable_checkpointing=True)
    assert best.best_model_path == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [MVPCallback(), MaskExport("masks"), PrunedCheckpoint()])
def test_the_trainer_of_pytorch_lightning_is_refused_by_name(asked: L.Callback):
    other = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer"})()
    with pytest.raises(TypeError, match=r"but got pytorch_lightning\.trainer\.trainer\.Trainer\. Write `import light"):
        asked.setup(other, UserModule(), "fit")


def test_hydras_grammar_tells_what_it_cannot_read():
    assert hydra_internals.can_parse("steps=4")
    assert not hydra_internals.can_parse("checkpoint=epoch=1.ckpt")
    assert issubclass(hydra_internals.JobError, Exception)


def test_flattened_channels_are_followed_to_the_features_that_they_become():
    """The other names of Torch-Pruning are needed to import the package at all; the stride is read when it is used."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    groups = find_groups(net, torch.zeros(2, 3, 2, 2))
    consumer = next(member for member in groups["0"].members if member.tensor == "3.weight")
    assert consumer.index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


def test_a_batch_is_prepared_as_for_a_training_step():
    class Doubled(UserModule):
        def on_before_batch_transfer(self, batch: list[torch.Tensor], dataloader_idx: int) -> list[torch.Tensor]:
            return [batch[0] * 2, batch[1]]

        def on_after_batch_transfer(self, batch: list[torch.Tensor], dataloader_idx: int) -> list[torch.Tensor]:
            return [batch[0] + 1, batch[1]]

    trainer = fit(Doubled(), max_steps=1)
    images, labels = internals.prepared_batch(trainer, [torch.ones(1), torch.zeros(1)])
    assert (images.item(), labels.item()) == (3, 0)
