"""Precisions, gradient scalers, torch.compile and synchronised batch norms beside pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_mvp import ModelZoo, find_groups

from .user import (
    EXAMPLE,
    FACTS,
    UserModule,
    callback,
    fit,
    holds,
    trained,
)


class Overflowing(UserModule):
    """Gradients of the given steps are infinite."""

    def __init__(self, steps: set[int], **options: Any) -> None:
        super().__init__(**options)
        self.steps = steps

    def on_after_backward(self) -> None:
        if self.trainer.global_step in self.steps:
            for parameter in self.net.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(torch.inf)


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))


def test_steps_that_the_scaler_leaves_out_are_not_scored_but_count():
    counts = []

    class Counting(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            counts.append((mvp.step, float(mvp.pruner.criterion.count), mvp.pruner.round))

    mvp, module = callback(head="classifier", rounds=2, steps_per_round=3), Overflowing({1})
    fit(module, mvp, Counting(), max_steps=8, plugins=[scaled()])
    assert counts[:3] == [(1, 1.0, 0), (2, 1.0, 0), (3, 0.0, 1)]
    holds(mvp, module)


def test_a_round_waits_for_the_first_step_with_finite_gradients():
    rounds = []

    class Rounds(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            rounds.append(mvp.pruner.round)

    mvp, module = callback(head="classifier"), Overflowing({0, 1, 2})
    fit(module, mvp, Rounds(), max_steps=8, plugins=[scaled()])
    assert rounds == [0, 0, 0, 2, 2, 3, 3, 3]  # the first comes with the second
    holds(mvp, module)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_scores_with_a_scaler_are_those_without():
    """The scaler multiplies the loss by 256; in float32 that changes nothing after unscaling."""

    class Float32(UserModule):
        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(images.float())

    with_scaler, without = (callback(head="classifier", rounds=1) for _ in range(2))
    fit(Float32(), with_scaler, plugins=[scaled()])
    fit(Float32(), without)
    assert with_scaler.masks == without.masks
    for name, score in without.importance.items():
        torch.testing.assert_close(with_scaler.importance[name], score, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["example", "first input"])
def test_other_precisions(precision: Any, example: Any, tmp_path: Path):
    mvp = callback(head="classifier", example_input=example, task=FACTS, zoo=tmp_path / "zoo")
    module = UserModule()
    fit(module, mvp, precision=precision)
    holds(mvp, module)
    assert next(mvp.small_model().parameters()).dtype == next(module.parameters()).dtype
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert {array.dtype.name for array in entry.weights.values()} <= {"float32", "int64"}
    again = callback(head="classifier", example_input=example)
    fit(module, again, precision=precision)
    holds(again, module)


class CompiledBackbone(UserModule):
    """``torch.compile`` of a part; the eager backend traces as any other and needs no C++ compiler."""

    def __init__(self, wrap: bool, **options: Any) -> None:
        super().__init__(**options)
        if wrap:
            self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]
        else:
            self.net.compile(backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["module", "backbone", "in place"])
def test_compiled_modules_are_pruned_as_others_are(what: str, tmp_path: Path):
    plain, mvp = trained(), callback(head="classifier", task=FACTS, zoo=tmp_path)
    module = UserModule() if what == "module" else CompiledBackbone(wrap=what == "backbone")
    compiled: Any = torch.compile(module, backend="eager") if what == "module" else module
    with pytest.raises(ValueError, match=r"`example_input` with a module under torch\.compile"):
        fit(compiled, callback(head="classifier", example_input=None))
    fit(compiled, mvp)
    assert mvp.masks == plain.masks
    small = mvp.small_model()
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-4, atol=1e-5)
    (entry,) = ModelZoo(tmp_path).entries()
    assert entry.prototypes is not None, "of the batches' own images"


def test_synchronised_batch_norm_has_the_same_groups_and_exports_plain_ones():
    module = UserModule()
    names = [group.name for group in find_groups(module.net, EXAMPLE)]
    module.net = nn.SyncBatchNorm.convert_sync_batchnorm(module.net)
    assert [group.name for group in find_groups(module.net, EXAMPLE)] == names
    mvp = trained(module=module)
    small = mvp.small_model()
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module.eval()(EXAMPLE), rtol=1e-5, atol=1e-5)
