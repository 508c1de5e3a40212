"""The small model is cut by masks that its weights were pruned with, or not at all; and from a checkpoint anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp import ModelZoo, MVPCallback, create_backbone

from ..nursery import Nursery
from .user import EXAMPLE, FACTS, VIT_RECIPE, UserModule, callback, fit, loader, make_trainer

STALE = r"Expected removed units to be zero, but \d+ of their \d+ entries in `.+` \(group `.+`\) are not"


class Validated(UserModule):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]) + self.global_step)  # the first is the best

    test_step = validation_step


def agree(small: nn.Module, module: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-5, atol=1e-5)


def states(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# Stale masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["test", "validate", "by hand"])
def test_weights_that_were_not_pruned_are_refused_by_layer_until_the_pruned_ones_are_back(tmp_path: Path, how: str):
    mvp, module = callback(head="classifier"), Validated()
    trainer = make_trainer(mvp, ModelCheckpoint(tmp_path, monitor="val_loss"), enable_checkpointing=True)
    trainer.fit(module, loader(2), loader(1))
    pruned = states(module)
    agree(mvp.small_model(), module)
    options = {"ckpt_path": "best", "weights_only": True, "verbose": False}
    if how == "by hand":
        module.load_state_dict(torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"])
    else:
        getattr(trainer, how)(module, loader(1), **options)
    with pytest.raises(ValueError, match=STALE):
        mvp.small_model()
    module.load_state_dict(pruned)
    agree(mvp.small_model(), module)


def test_one_entry_that_is_not_zero_is_enough_and_weights_of_another_size_are_refused():
    mvp, module = callback(head="classifier"), UserModule()
    fit(module, mvp)
    kept = mvp.masks["layer1.residual"]
    with torch.no_grad():
        module.net.layer1[0].bn2.bias[int((~kept).nonzero()[0])] = 1e-3
    with pytest.raises(ValueError, match=r"1 of their 4 entries in `layer1.0.bn2.bias` \(group `layer1.residual`\)"):
        mvp.small_model()
    module.net = mvp.small_model_from(state_of(mvp, module, spoil=0.0), UserModule())[0]
    with pytest.raises(ValueError, match=r"at its full size, but its axis 0 has only .* weights of a smaller model"):
        mvp.small_model()


def state_of(mvp: MVPCallback, module: L.LightningModule, spoil: float | None = None) -> dict[str, Any]:
    """What a checkpoint would hold now; a value for the one bias that the test above has changed."""
    if spoil is not None:
        removed = ~mvp.masks["layer1.residual"]
        with torch.no_grad():
            module.net.layer1[0].bn2.bias[removed] = spoil
    return {"state_dict": module.state_dict(), "callbacks": {"MVPCallback": mvp.state_dict()}}


class LoadsAtTheEnd(L.Callback):
    """Brings weights back in from before, as some callbacks do with the best of a run."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = states(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.load_state_dict(self.weights)


def test_the_zoo_takes_no_weights_that_were_not_pruned_and_leaves_them_as_they_are(tmp_path: Path):
    mvp, module, last = callback(head="classifier", task=FACTS, zoo=tmp_path / "zoo"), UserModule(), LoadsAtTheEnd()
    with pytest.raises(ValueError, match=STALE):
        fit(module, mvp, last)
    assert len(ModelZoo(tmp_path / "zoo")) == 0
    assert all(torch.equal(tensor, last.weights[name]) for name, tensor in module.state_dict().items())
    # Beside an average, too, which is masked where it comes from averaging.
    mvp, module, last = callback(head="classifier"), UserModule(), LoadsAtTheEnd()
    fit(module, mvp, EMAWeightAveraging(), last)
    assert all(torch.equal(tensor, last.weights[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(ValueError, match=STALE):
        mvp.small_model()


def test_an_average_of_weights_that_an_optimizer_moves_between_steps_is_masked(tmp_path: Path):
    class Restless(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            loss = super().step(closure)
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter += 1e-3
            return loss

    class Module(UserModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Restless(self.parameters(), lr=0.05)

    mvp, module = callback(head="classifier", task=FACTS, zoo=tmp_path / "zoo"), Module()
    fit(module, EMAWeightAveraging(decay=0.5), mvp)  # the average is taken before removed units are zeroed
    agree(mvp.small_model(), module)
    assert len(ModelZoo(tmp_path / "zoo")) == 1


# From a checkpoint ----------------------------------------------------------------------------------------------------


def write(path: Path, module: L.LightningModule | None = None, max_steps: int = 8, **options: Any) -> Any:
    """A checkpoint of a run, and what small_model() gave then."""
    module, mvp = UserModule() if module is None else module, callback(**{"head": "classifier", **options})
    fit(module, mvp, max_steps=max_steps).save_checkpoint(path)
    return mvp.small_model() if mvp.finished else None


def in_another_process(checkpoint: str, output: str) -> None:
    small = MVPCallback.small_model_from(checkpoint, UserModule())
    torch.save({"logits": small(EXAMPLE).detach(), "training": small.training}, output)


@pytest.mark.slow
def test_a_process_that_knows_only_the_checkpoint_gets_the_same_small_model(tmp_path: Path, nursery: Nursery):
    small = write(tmp_path / "some.ckpt")
    done = nursery.run(
        "tests.callbacks.test_small_model:in_another_process", tmp_path / "some.ckpt", tmp_path / "said.pt"
    )
    assert done.well, done.text
    said = torch.load(tmp_path / "said.pt", weights_only=True)
    torch.testing.assert_close(said["logits"], small(EXAMPLE), rtol=1e-6, atol=1e-6)
    assert not said["training"]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (lambda: UserModule(), {}),
        (lambda: UserModule(create_backbone(VIT_RECIPE)), {}),
        (lambda: UserModule(), {"head": None}),
        (lambda: UserModule(), {"exclude": "residual", "example_input": None}),
    ],
    ids=["resnet", "vit", "no head", "some groups and the first input"],
)
@pytest.mark.parametrize("loaded", [False, True], ids=["file", "dict"])
def test_a_checkpoint_and_a_new_module_are_enough(tmp_path: Path, module: Any, options: Any, loaded: bool):
    path, trained, fresh = tmp_path / "some.ckpt", module(), module()
    small = write(path, trained, **options)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter += 1.0
    again = MVPCallback.small_model_from(torch.load(path, weights_only=True) if loaded else path, fresh)
    assert str(again) == str(small)
    assert not again.training
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in fresh.state_dict().items())


def test_an_older_checkpoint_needs_the_names(tmp_path: Path):
    path = tmp_path / "some.ckpt"
    small = write(path)
    saved = torch.load(path, weights_only=True)
    for key in ("backbone", "head"):
        del saved["callbacks"]["MVPCallback"][key]
    del saved["callbacks"]["MVPCallback"]["pruner"]["inputs"]
    with pytest.raises(ValueError, match="`backbone` to be given, because the checkpoint is of an older version"):
        MVPCallback.small_model_from(saved, UserModule())
    names = {"backbone": "net", "head": "classifier"}
    with pytest.raises(ValueError, match="`example_input` to be a batch of images or its shape"):
        MVPCallback.small_model_from(saved, UserModule(), **names)
    again = MVPCallback.small_model_from(saved, UserModule(), example_input=[2, 3, 16, 16], **names)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items())


def test_what_does_not_fit_is_refused_and_named(tmp_path: Path):
    path, plain = tmp_path / "some.ckpt", tmp_path / "plain.ckpt"
    write(path)
    saved = torch.load(path, weights_only=True)
    with pytest.raises(FileNotFoundError, match=r"Expected a checkpoint at .*nowhere"):
        MVPCallback.small_model_from(tmp_path / "nowhere", UserModule())
    fit(UserModule(), max_steps=1).save_checkpoint(plain)
    with pytest.raises(ValueError, match=r"with MVPCallback, but .*plain\.ckpt has no state of one"):
        MVPCallback.small_model_from(plain, UserModule())
    with pytest.raises(ValueError, match=r"UserModule that the weights of .* fit, but they don't"):
        MVPCallback.small_model_from(path, UserModule(create_backbone(VIT_RECIPE)))
    with pytest.raises(
        ValueError, match="`backbone` to be the dotted name of a submodule of UserModule, but got 'body'"
    ):
        MVPCallback.small_model_from(path, UserModule(), backbone="body")
    with pytest.raises(ValueError, match=r"`head` to name a torch.nn.Linear, but it names a Conv2d"):
        MVPCallback.small_model_from(path, UserModule(), head="net.conv1")
    masks = saved["callbacks"]["MVPCallback"]["pruner"]["masks"]
    masks["layer1.residual"] = masks["layer1.residual"][:-1]
    with pytest.raises(ValueError, match=r"such as `layer1.residual` of 7 units, but it has 8 units"):
        MVPCallback.small_model_from(saved, UserModule())
    write(path, max_steps=6)
    saved = torch.load(path, weights_only=True)
    saved["state_dict"] = UserModule().state_dict()
    with pytest.raises(ValueError, match=STALE):
        MVPCallback.small_model_from(saved, UserModule())


def test_unfinished_pruning_is_refused_with_its_rounds(tmp_path: Path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step in (1, 5):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(UserModule(), callback(head="classifier", example_input=None), Save())
    for step, rounds in ((1, 0), (5, 2)):
        with pytest.raises(ValueError, match=f"but {rounds} of 3 rounds had happened when .*{step}.ckpt was written"):
            MVPCallback.small_model_from(tmp_path / f"{step}.ckpt", UserModule())


def test_files_that_are_no_plain_checkpoint_are_refused(tmp_path: Path):
    path = tmp_path / "some.ckpt"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"some\.ckpt, but it is damaged, or something else"):
        MVPCallback.small_model_from(path, UserModule())
    torch.save({"state_dict": {}, "hyper_parameters": {"root": Path("photos")}}, path)
    with pytest.raises(ValueError, match=r"it holds other objects .*Path.* load it yourself"):
        MVPCallback.small_model_from(path, UserModule())
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="but it has no `state_dict`"):
        MVPCallback.small_model_from(path, UserModule())
