"""The callbacks that come along with MVPCallback."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lightning_mvp.callbacks.bar import RoundInBar
from lightning_mvp.callbacks.finite_loss import FiniteLoss
from lightning_mvp.callbacks.interrupt import Interrupt
from lightning_mvp.callbacks.time_limit import TimeLimit

COMPANIONS: tuple[type[L.Callback], ...] = (FiniteLoss, TimeLimit, Interrupt, RoundInBar)


def bring_companions(trainer: L.Trainer, pruning: L.Callback, kinds: Sequence[type[L.Callback]]) -> None:
    """Place each companion beside the callback that prunes, if the Trainer has none of its class somewhere else.

    What watches the loss comes before pruning, so that no round follows a loss that is not finite. Where a gradient
    scaler leaves such steps out, nothing needs to watch.

    To be called in ``setup``: Lightning finishes this hook with the old list, and uses the new one in all that follow.

    Args:
        trainer: its list of callbacks is replaced.
        pruning: the callback that prunes.
        kinds: classes of the companions.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    first: list[L.Callback] = []
    behind: list[L.Callback] = []
    for kind in kinds:
        watches = issubclass(kind, FiniteLoss)
        needed = not watches or getattr(trainer.precision_plugin, "scaler", None) is None
        there = [callback for callback in callbacks if isinstance(callback, kind)]
        (first if watches else behind).extend(there or ([kind()] if needed else []))
    others = [callback for callback in callbacks if callback not in first + behind]
    at = others.index(pruning)
    trainer.callbacks = [*others[:at], *first, pruning, *behind, *others[at + 1 :]]  # type: ignore[attr-defined]
