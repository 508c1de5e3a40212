"""Masks of a model that somebody else pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_mvp import MaskExport, Masks, apply_masks, create_backbone, find_groups, shrink
from lightning_mvp.backbones import random_masks

from .user import EXAMPLE, RECIPE, VIT_RECIPE, UserModule, callback, fit


class AtEnd(L.Callback):
    """Somebody's own pruning, done to the module when training ends."""

    def __init__(self, do: Callable[[UserModule], Any]) -> None:
        self.do = do

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UserModule)
        self.do(pl_module)


def export(path: Path) -> MaskExport:
    return MaskExport(path, backbone="net", example_input=EXAMPLE)


@pytest.mark.parametrize("recipe", [RECIPE, VIT_RECIPE], ids=["resnet", "vit"])
def test_zeroed_units_are_written_as_removed(tmp_path: Path, recipe: Any):
    module = UserModule(create_backbone(recipe))
    groups = find_groups(module.net, EXAMPLE)
    masks = random_masks(groups, 0.5, seed=0)
    fit(module, AtEnd(lambda module: apply_masks(module.net, groups, masks)), export(tmp_path / "masks"), max_steps=1)
    assert Masks.load(tmp_path / "masks") == masks


def test_it_agrees_with_the_callback_that_prunes(tmp_path: Path):
    mvp = callback(head="classifier")
    fit(UserModule(), mvp, export(tmp_path / "masks"))
    assert Masks.load(tmp_path / "masks") == mvp.masks


def test_a_dense_model_keeps_everything(tmp_path: Path):
    module = UserModule()
    fit(module, export(tmp_path / "masks"), max_steps=1)
    assert Masks.load(tmp_path / "masks") == Masks.full(find_groups(module.net, EXAMPLE))


@pytest.mark.parametrize("when", ["before", "during"])
def test_torch_prune_is_honoured(tmp_path: Path, when: str):
    def remove_two(module: UserModule) -> None:
        prune.ln_structured(module.net.layer1[0].conv1, "weight", amount=2, n=2, dim=0)

    module = UserModule()
    if when == "before":
        remove_two(module)
        fit(module, export(tmp_path / "masks"), max_steps=1)
    else:
        fit(module, AtEnd(remove_two), export(tmp_path / "masks"), max_steps=1)
    masks = Masks.load(tmp_path / "masks")
    assert masks.kept == {**masks.sizes, "layer1.0.conv1": 6}
    assert torch.equal(masks["layer1.0.conv1"], module.net.layer1[0].conv1.weight_mask.flatten(1).any(1))


def test_a_model_that_was_cut_is_refused(tmp_path: Path):
    def cut(module: UserModule) -> None:
        groups = find_groups(module.net, EXAMPLE)
        module.net = shrink(module.net, groups, random_masks(groups, 0.5, seed=0))

    with pytest.raises(ValueError, match="physically cut"):
        fit(UserModule(), AtEnd(cut), export(tmp_path / "masks"), max_steps=1)
    assert not (tmp_path / "masks").exists()


def test_an_existing_file_is_refused_before_any_step(tmp_path: Path):
    (tmp_path / "masks").write_text("mine")
    module = UserModule()
    before = module.net.conv1.weight.clone()
    with pytest.raises(FileExistsError, match="Remove it first"):
        fit(module, export(tmp_path / "masks"), max_steps=1)
    assert torch.equal(module.net.conv1.weight, before)
    assert (tmp_path / "masks").read_text() == "mine"


def test_an_example_is_needed(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`example_input`.*`example_input_array`"):
        fit(UserModule(), MaskExport(tmp_path / "masks", backbone="net"), max_steps=1)
    module = UserModule()
    module.example_input_array = EXAMPLE
    fit(module, MaskExport(tmp_path / "masks", backbone="net"), max_steps=1)
    assert (tmp_path / "masks").exists()


def test_an_unknown_backbone_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`backbone`"):
        fit(UserModule(), MaskExport(tmp_path / "masks", example_input=EXAMPLE), max_steps=1)


def test_a_module_in_a_list_is_found_by_its_dotted_name(tmp_path: Path):
    class Nested(UserModule):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([self.net])

    fit(Nested(), MaskExport(tmp_path / "masks", backbone="parts.0", example_input=EXAMPLE), max_steps=1)
    assert len(Masks.load(tmp_path / "masks")) == 6
