"""A loss that is not finite: at which step, and whether a pruning round or the learning rate is at fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp import MVPCallback
from lightning_mvp.callbacks.companions import COMPANIONS, FiniteLoss, Interrupt, TimeLimit
from lightning_mvp.pruning.loss_watch import LossWatch

from .user import UserModule, callback, fit, loader


class RootMeanSquare(UserModule):
    """The slope of a square root is infinite where a channel is zero; the backbone's self-check can't see this one."""

    def __init__(self, small: float = 0.0) -> None:
        body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 16, 3), nn.SiLU())
        super().__init__(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        self.small = small

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        norms = (self.net(batch[0]).square() + self.small).sqrt() - self.small**0.5
        return F.cross_entropy(self.classifier(norms), batch[1])


def watched(losses: list[float], round_at: int | None = None, **options: Any) -> str:
    """What is said of losses of steps 1, 2, ..., with a round after one of them."""
    watch = LossWatch(**options)
    for step, loss in enumerate(losses[:-1], 1):
        watch.see(torch.tensor(loss), step)
        if step == round_at:
            watch.after_round(2, step)
    with pytest.raises(FloatingPointError) as raised:
        watch.see(torch.tensor(losses[-1]), len(losses))
    return str(raised.value)


def test_a_loss_that_fails_right_after_a_round_is_told_from_others() -> None:
    nan = torch.nan
    after = watched([1.0, 1.1, 2.5, nan], round_at=2)
    assert (
        "not finite at step 4. Nothing was written. It began right after round 2 of pruning, 2 steps after it" in after
    )
    assert "(2.5): look for an operation whose value or slope" in after
    cut = watched([1.0, 1.1, nan], round_at=2, zeroes=False)
    assert "right after round 2" in cut
    assert "more rounds" in cut
    assert "square root" not in cut
    for losses, round_at in (
        ([1.0, nan], None),
        ([1.0, 1.1, 1.2, 1.1, 1.1, 1.1, nan], 2),  # long after
        ([1.0, 1.1, 4e5, nan], 2),  # on its way to infinity
    ):
        said = watched(losses, round_at)
        assert "Lower the learning rate" in said
        assert "round" not in said


@pytest.mark.parametrize("first", [False, True], ids=["the callback alone", "behind FiniteLoss"])
def test_a_square_root_of_removed_channels_is_told(first: bool) -> None:
    mvp = callback(head="classifier", rounds=2, steps_per_round=3)
    with pytest.raises(FloatingPointError, match=r"at step 5\. .* right after round 1 of pruning, 2 step.* - 1e-3"):
        fit(RootMeanSquare(), *([FiniteLoss()] if first else []), mvp)
    mended = callback(head="classifier", rounds=2, steps_per_round=3)
    fit(RootMeanSquare(1e-6), mended)
    assert mended.finished


def test_companions_stand_beside_pruning_once_and_can_be_left_out() -> None:
    own, mvp = TimeLimit(), callback(head="classifier")
    trainer = fit(UserModule(), own, mvp)
    trainer.fit_loop.epoch_loop.max_steps = 24
    trainer.fit(UserModule(), loader())
    kinds = [type(each) for each in trainer.callbacks]  # type: ignore[attr-defined]
    at = kinds.index(MVPCallback)
    assert kinds[at - 1 : at + 3] == [FiniteLoss, MVPCallback, TimeLimit, Interrupt]
    assert [kinds.count(kind) for kind in COMPANIONS] == [1, 1, 1, 1]
    assert own in trainer.callbacks  # type: ignore[attr-defined]
    alone = callback(head="classifier", companions=())
    trainer = fit(UserModule(spoil_at=11), alone)
    assert alone.finished
    assert not {type(each) for each in trainer.callbacks} & set(COMPANIONS)  # type: ignore[attr-defined]


def test_gradients_that_end_with_a_round_are_told_where_a_scaler_hides_the_loss() -> None:
    class Hidden(RootMeanSquare):
        """As under a scaler, which leaves out steps whose gradients are not finite."""

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.parameters()):
                optimizer.param_groups[0]["lr"] = 0.0
                for parameter in self.parameters():
                    optimizer.state.pop(parameter, None)
                    parameter.grad = torch.full_like(parameter, torch.nan)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            if not all(tensor.isfinite().all() for tensor in self.state_dict().values()):
                self.load_state_dict(before)

    mvp = callback(head="classifier", rounds=2, steps_per_round=3)
    with pytest.warns(UserWarning, match=r"1 of 2 rounds .* Since round 1 no step had finite gradients: .*square root"):
        fit(Hidden(), mvp)
