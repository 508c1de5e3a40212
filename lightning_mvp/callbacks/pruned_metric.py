"""Whether a metric's value was measured on the pruned model, for callbacks that wait for pruning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.lightning_internals import require_lightning


class WaitsForPruning(L.Callback):
    """A mixin for callbacks with a ``monitor``, which then decide only by values measured after the last round.

    A value counts if it was measured in a validation, a training epoch or a training batch that began after the last
    round. So neither a validation before that round counts, nor the average over an epoch in which it happened.
    """

    waits_for_pruning = True
    monitor: Any  # a name; None in a ModelCheckpoint that monitors nothing
    _pruning: PruningState | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called first: finds the MVPCallback, and forgets what an earlier fit measured."""
        require_lightning(trainer)
        if stage == "fit":
            plain = next(base for base in type(self).__mro__ if base.__module__.startswith("lightning."))
            self._pruning = PruningState.beside(self, trainer, f", or use Lightning's {plain.__name__}")
            self._began: dict[str, Tensor | None] = {}
            self._counting: Tensor | None = None
        super().setup(trainer, pl_module, stage)

    @property
    def pruned(self) -> bool:
        """Whether the last round has happened."""
        return self._pruning is not None and self._pruning.finished

    # When a value is measured and when it decides ---------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch; an epoch begins with its first."""
        # Lightning skips on_train_epoch_start when it resumes from a checkpoint of an epoch's last batch.
        if batch_idx == 0:
            self._begin("epoch", trainer)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before each validation."""
        if _validates_in_fit(trainer):
            self._begin("validation", trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after each validation: its value counts if pruning was over when it began."""
        if _validates_in_fit(trainer):
            counts = self._counts("validation", trainer) or self._missing(trainer)
            self._decide(trainer, counts, partial(super().on_validation_end, trainer, pl_module))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after each training epoch: its value counts if pruning was over when it began."""
        counts = self._counts("epoch", trainer) or self._missing(trainer)
        self._decide(trainer, counts, partial(super().on_train_epoch_end, trainer, pl_module))

    def _decide(self, trainer: L.Trainer, counts: bool, decide: Callable[[], None]) -> None:
        """Let the callback decide at the end of a span, if the value counts."""
        if counts:
            decide()

    def _begin(self, span: str, trainer: L.Trainer) -> None:
        self._began.pop(span, None)
        if self.pruned:
            self._began[span] = self._value(trainer)

    def _counts(self, span: str, trainer: L.Trainer) -> bool:
        """Whether the metric's value, at the end of a span, was measured on the pruned model."""
        value = self._value(trainer)
        if span in self._began and not _same_measurement(value, self._began[span]):
            self._counting = value
        return self.pruned and (self.monitor is None or _same_measurement(value, self._counting))

    def _missing(self, trainer: L.Trainer) -> bool:
        """Whether nobody logged the metric. Lightning then raises at once rather than after hours of pruning."""
        return self.monitor is not None and self._value(trainer) is None

    def _value(self, trainer: L.Trainer) -> Tensor | None:
        return None if self.monitor is None else trainer.callback_metrics.get(self.monitor)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint."""
        # The start of an epoch is not seen by a run that is resumed in its middle.
        return {**super().state_dict(), "epoch_began_pruned": "epoch" in self._began}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called after :meth:`setup` where a run is resumed."""
        super().load_state_dict(state_dict)
        self._began = {"epoch": None} if state_dict["epoch_began_pruned"] else {}


def _validates_in_fit(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _same_measurement(one: Tensor | None, other: Tensor | None) -> bool:
    # The numbers of two measurements may be equal, but not their memory, as long as both are held. Reading a
    # measurement again gives another tensor with the same memory.
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()
