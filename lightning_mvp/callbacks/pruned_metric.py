"""Whether the value of a metric was measured on the pruned model: what callbacks that wait for pruning share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_mvp.callbacks.mvp import MVPCallback


class WaitsForPruning(L.Callback):
    """Mixed into a callback with a ``monitor``: lets it see only values that were measured after the last round.

    A value counts if it was measured within a span that began after the last round: a validation, a training epoch, or
    a training batch. So neither a validation before the last round counts, nor the average over an epoch in which that
    round happened.
    """

    waits_for_pruning = True
    monitor: Any  # a name; None in a ModelCheckpoint that monitors nothing
    _pruning: MVPCallback | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            self._pruning = next((other for other in callbacks if isinstance(other, MVPCallback)), None)
            if self._pruning is None:
                plain = next(base for base in type(self).__mro__ if base.__module__.startswith("lightning."))
                raise ValueError(
                    f"Expected an MVPCallback beside {type(self).__name__}, but the Trainer has none: there is no "
                    f"pruning to wait for. Add an MVPCallback to its callbacks, or use Lightning's {plain.__name__}."
                )
            self._began: dict[str, Tensor | None] = {}
            self._counting: Tensor | None = None
        super().setup(trainer, pl_module, stage)

    @property
    def pruned(self) -> bool:
        """Whether the last round has happened."""
        return self._pruning is not None and self._pruning.finished

    # When a value is measured and when it decides ---------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Resumed from a checkpoint of an epoch's last batch, Lightning calls no on_train_epoch_start for the next one.
        if batch_idx == 0:
            self._begin("epoch", trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _validates_in_fit(trainer):
            self._begin("validation", trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _validates_in_fit(trainer):
            counts = self._counts("validation", trainer) or self._missing(trainer)
            self._decide(counts, partial(super().on_validation_end, trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self._counts("epoch", trainer) or self._missing(trainer)
        self._decide(counts, partial(super().on_train_epoch_end, trainer, pl_module))

    def _decide(self, counts: bool, decide: Callable[[], None]) -> None:
        """What to do at the end of a span, whether or not the value counts."""
        if counts:
            decide()

    def _begin(self, span: str, trainer: L.Trainer) -> None:
        self._began.pop(span, None)
        if self.pruned:
            self._began[span] = self._value(trainer)

    def _counts(self, span: str, trainer: L.Trainer) -> bool:
        """At the end of a span: whether the value that the metric has now was measured on the pruned model."""
        value = self._value(trainer)
        if span in self._began and not _same_measurement(value, self._began[span]):
            self._counting = value
        return self.pruned and (self.monitor is None or _same_measurement(value, self._counting))

    def _missing(self, trainer: L.Trainer) -> bool:
        """Whether nobody logged the metric: Lightning says so at once, not after hours of pruning."""
        return self.monitor is not None and self._value(trainer) is None

    def _value(self, trainer: L.Trainer) -> Tensor | None:
        return None if self.monitor is None else trainer.callback_metrics.get(self.monitor)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        # An epoch that is resumed in its middle has no start.
        return {**super().state_dict(), "epoch_began_pruned": "epoch" in self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._began = {"epoch": None} if state_dict["epoch_began_pruned"] else {}


def _validates_in_fit(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _same_measurement(one: Tensor | None, other: Tensor | None) -> bool:
    # Each measurement has memory of its own for as long as somebody holds it; reading it again gives another view of
    # that memory. Equal numbers may be two measurements.
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()
