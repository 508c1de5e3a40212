"""The reference that is not ours cuts in the same loop as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mvp.study import study_context
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.torch_pruning_cutter import TorchPruningCutter
from lightning_mvp.training.rounds import endless, prune_and_cut
from lightning_mvp.training.task import TaskModule

from .small_study import images_of, in_memory, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
STEPS = 10


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartRunner:
    data = in_memory(images_of(4, seed=1), images_of(6, seed=2))
    monkeypatch.setattr(study_context, "load_data", lambda **_: data)
    runner = PartRunner(tmp_path, settings())
    runner.run("pretrain")
    return runner


def test_torch_prunings_model_is_as_small_as_ours(runner: PartRunner) -> None:
    data = runner.datamodule(runner.split.get("source", 0))
    module = TaskModule.for_task(runner.theta0.build(), data.facts)
    pruning = runner.scratch_settings(runner.settings)
    before = sum(parameter.numel() for parameter in module.parameters())
    cutter = TorchPruningCutter(module, pruning, runner.theta0.example, endless(data))
    small = prune_and_cut(module, data, cutter, pruning, STEPS, precision="32-true")
    left = sum(parameter.numel() for parameter in small.parameters()) / before
    assert 0.08 < left < 0.1  # 0.3 ** 2, and what is not quadratic
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
