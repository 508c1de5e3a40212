"""Optimizers and gradients beside pruning: manual optimization, clipping, accumulation, optimizers of one's own."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
)
from torch import Tensor
from torch.nn import functional as F

from lightning_mvp import create_backbone

from .user import (
    VIT_RECIPE,
    UserModule,
    callback,
    fit,
    holds,
    loader,
    make_trainer,
    removed_entries,
    trained,
)


class Manual(UserModule):
    """Manual optimization, with an optimizer for the head beside the backbone's; ``inner`` steps for each batch."""

    def __init__(self, inner: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.inner = inner

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        backbone, head = self.optimizers()
        for _ in range(self.inner):
            backbone.zero_grad()
            head.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            backbone.step()
        head.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9) for part in (self.net, self.classifier)]


def test_manual_optimization_counts_the_steps_of_the_backbones_optimizer():
    mvp, module = callback(head="classifier"), Manual()
    trainer = fit(module, mvp, max_steps=24)
    assert (trainer.global_step, mvp.step) == (24, 12)
    holds(mvp, module)


def test_manual_optimization_with_several_steps_a_batch():
    mvp, module = callback(head="classifier"), Manual(inner=3)
    trainer = make_trainer(mvp, max_steps=-1, max_epochs=1)
    trainer.fit(module, loader(batches=4))
    assert mvp.step == 12
    holds(mvp, module)


def test_with_manual_optimization_the_assumed_number_of_steps_is_said():
    mvp = callback(head="classifier", steps_per_round=None)
    with pytest.warns(UserWarning, match="is assumed, 12 in all, with the last pruning round after step 6"):
        fit(Manual(), mvp, max_steps=24)
    assert mvp.schedule is not None
    assert mvp.schedule.steps_per_round == 2  # 60 % of 12 steps over 3 rounds


def test_removed_units_count_in_no_gradient_norm():
    norms: list[float] = []

    class Clipped(UserModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            gradients = {name: parameter.grad for name, parameter in self.net.named_parameters()}
            norms.append(max([float(part.abs().max()) for part in removed_entries(mvp, gradients)] or [0.0]))  # type: ignore[arg-type]

    mvp = callback(head="classifier")
    trained(mvp, Clipped(create_backbone(VIT_RECIPE)), gradient_clip_val=0.1)  # where dead units do get gradients
    assert norms == [0.0] * 12


def test_removed_units_stay_zero_whatever_an_optimizer_does():
    class Noisy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter += 1e-3
            return loss

    class Module(UserModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Noisy(self.parameters(), lr=0.05)

    trained(module=Module())


def test_an_optimizer_that_looks_twice_at_a_batch_does_one_step():
    class TwoLooks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    class Module(UserModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return TwoLooks(self.parameters(), lr=0.05)

    assert trained(module=Module()).step == 12


def test_an_optimizer_that_is_replaced_is_followed():
    class Replace(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.strategy.optimizers = [pl_module.configure_optimizers()]

    mvp, module = callback(head="classifier"), UserModule(create_backbone(VIT_RECIPE), optimizer="adamw")
    fit(module, mvp, Replace())
    assert mvp.step == 12
    holds(mvp, module)


def test_clipping_by_norm_bounds_what_is_left():
    class Watched(UserModule):
        largest = 0.0

        def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
            super().configure_gradient_clipping(*args, **options)
            norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
            self.largest = max(self.largest, float(norm))

    module = Watched()
    trained(module=module, gradient_clip_val=0.1)
    assert module.largest == pytest.approx(0.1, rel=1e-4)


def test_accumulation_that_changes_between_epochs():
    mvp, module = callback(head="classifier"), UserModule()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3})
    make_trainer(mvp, scheduler, max_steps=-1, max_epochs=3).fit(module, loader(batches=6))
    assert mvp.step == 6 + 2 + 2
    holds(mvp, module)
