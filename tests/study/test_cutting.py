"""Pruning by cutting is what MVPCallback does by zeroing: the same scores, masks, rates and momentum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.modules.task import TaskModule
from lightning_mvp.study import parts
from lightning_mvp.study.cutting import OwnCutter, endless, prune_and_cut
from lightning_mvp.study.outside import TorchPruningCutter
from lightning_mvp.study.parts import Workshop

from .workshop import images_of, in_memory, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
STEPS = 10


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(parts, "load_data", lambda **_: data)
    shop = Workshop(tmp_path, settings())
    shop.run("pretrain")
    return shop


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("taylor", {"learning_rate": 0.01}),
        ("magnitude", {"learning_rate": 0.01}),
        ("taylor", {"learning_rate": 0.001, "optimizer": "adamw"}),
    ],
)
def test_cutting_and_zeroing_give_the_same_masks_and_weights(
    shop: Workshop, criterion: str, options: dict[str, Any]
) -> None:
    data = shop.datamodule(shop.split.get("source", 0))

    def module() -> TaskModule:
        made = TaskModule.for_task(shop.theta0.build(), data.facts, **options)
        made.initialise_head(data)
        return made

    zeroed, callback = module(), shop.pruner(criterion=criterion)
    shop.fit(zeroed, data, STEPS, callback)
    pruning = shop.scratch_settings(shop.settings, criterion=criterion)
    cutter = OwnCutter(shop.theta0, pruning, options)
    cut = prune_and_cut(module(), data, cutter, pruning, STEPS, clip=1.0, precision="32-true")

    assert callback.masks.kept == cutter.masks.kept
    iou = callback.masks.iou(cutter.masks)
    assert min(iou.values()) == 1, iou
    small = shrink(zeroed.backbone, shop.theta0.groups, callback.masks).state_dict()
    for name, tensor in cut.backbone.state_dict().items():
        torch.testing.assert_close(
            tensor, small[name], rtol=2e-2, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_torch_prunings_model_is_as_small_as_ours(shop: Workshop) -> None:
    data = shop.datamodule(shop.split.get("source", 0))
    module = TaskModule.for_task(shop.theta0.build(), data.facts)
    pruning = shop.scratch_settings(shop.settings)
    before = sum(parameter.numel() for parameter in module.parameters())
    cutter = TorchPruningCutter(module, pruning, shop.theta0.example, endless(data), {})
    small = prune_and_cut(module, data, cutter, pruning, STEPS, precision="32-true")
    left = sum(parameter.numel() for parameter in small.parameters()) / before
    assert 0.08 < left < 0.1  # 0.3 ** 2, and what is not quadratic
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
