"""Optimizers and schedules by their import path: made for a task's parameters, or refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_mvp import TaskFacts, TaskModule
from lightning_mvp.training.optimizer import optimizer_of, require_optim, schedule_of
from lightning_mvp.training.rounds import require_known_optim

from ..callbacks.user import RECIPE

FACTS = TaskFacts("pets", ("cat", "dog"), 16, (0.5,) * 3, (0.25,) * 3)
MUON = {"_target_": "timm.optim.Muon", "momentum": 0.9}
STEPS = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5}


def test_a_class_by_its_path_trains_kernels_and_vectors_without_decay_of_vectors() -> None:
    kernel, bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))
    before = kernel.detach().clone(), bias.detach().clone()
    muon = optimizer_of([kernel, bias], MUON, 0.01, 0.2)
    assert [(group["weight_decay"], group["momentum"]) for group in muon.param_groups] == [(0.2, 0.9), (0.0, 0.9)]
    schedule = schedule_of(muon, STEPS, 4)
    rates = []
    for _ in range(4):
        rates.append(muon.param_groups[0]["lr"])
        (kernel.square().sum() + bias.square().sum()).backward()
        muon.step()
        schedule.step()
    assert rates == [0.01, 0.01, 0.005, 0.005]
    assert not torch.equal(kernel, before[0])
    assert not torch.equal(bias, before[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": {"_target_": "os.system", "command": "true"}}, "subclass of torch.optim.optimizer.Optimizer"),
        ({"optimizer": {"_target_": "torch.optim.Nadir"}}, "'torch.optim.Nadir' can't be"),
        ({"optimizer": {**MUON, "speed": 3}}, "to be what timm.optim.Muon takes, but: .*speed"),
        ({"optimizer": {"_target_": "torch.optim.SGD", "foreach": {"_target_": "os.getpid"}}}, "plain arguments"),
        ({"optimizer": {"momentum": 0.9}}, "a class in `_target_`"),
        ({"optimizer": "lion"}, "`optimizer`"),
        ({"schedule": {"_target_": "torch.optim.lr_scheduler.StepLR"}}, "step_size"),
        ({"schedule": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}}, "waits for a metric"),
    ],
)
def test_what_can_not_be_made_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_optim(**options)


def test_a_checkpoint_keeps_the_path_as_plain_containers_and_makes_no_nested_object() -> None:
    module = TaskModule(RECIPE, FACTS.to_dict(), optimizer=MUON, schedule=STEPS)
    assert (module.hparams["optimizer"], module.hparams["schedule"]) == (MUON, STEPS)
    assert type(module.make_optimizer()).__name__ == "Muon"
    with pytest.raises(ValueError, match="plain arguments"):
        TaskModule(RECIPE, FACTS.to_dict(), optimizer={**MUON, "momentum": {"_target_": "os.getpid"}})


def test_cutting_takes_ours_alone() -> None:
    require_known_optim("sgd", "onecycle")
    with pytest.raises(ValueError, match="mvp-prune without cut_between_rounds"):
        require_known_optim(MUON, "onecycle")
