"""Whether ``max_time`` can hold the schedule: known once a few steps have been timed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from typing_extensions import override

from lightning_mvp.callbacks.state import PruningState

# The first steps are slow (compilation, memory, workers starting).
WARM_UP = 3
TIMED = 10


class TimeLimit(L.Callback):
    """Refuses a run whose ``max_time`` ends before the last pruning round.

    :data:`WARM_UP` + :data:`TIMED` optimizer steps are needed to know. Without ``max_time``, a Timer, nothing is done.

    Raises:
        ValueError: after those steps, the time left is too short, by the speed so far.
    """

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the first training step: counts from here on."""
        self._pruning = PruningState.beside(self, trainer)
        self._timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        self._step, self._timing_from = self._pruning.step, self._pruning.step + WARM_UP
        self._began: tuple[int, float] | None = None

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before a validation: its seconds are no step's, so timing starts anew after it."""
        self._began = None

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch: checks once, as soon as enough steps have been timed."""
        step = self._pruning.step
        if not self._timers or step == self._step or step < self._timing_from:
            return
        self._step = step
        if self._began is None:
            self._began = step, self._timers[0].time_elapsed()
            return
        first, began = self._began
        if step - first < TIMED:
            return
        assert self._pruning.schedule is not None, "it was made at the start of fit"
        last = self._pruning.schedule.last_step
        for timer in self._timers:
            # Clocks differ between ranks; a decision must not.
            clocks = began, timer.time_elapsed(), timer.time_remaining()
            began, elapsed, left = trainer.strategy.broadcast(clocks)
            needed = (elapsed - began) / (step - first) * (last - step)
            if left is not None and needed > left:
                raise ValueError(
                    f"Expected `max_time` to hold the pruning schedule, but its last round, at step {last}, "
                    f"would come after about {timedelta(seconds=round(elapsed + needed))} at the speed so far, and "
                    f"{timedelta(seconds=round(elapsed + left))} are allowed. Raise max_time, or prune in fewer or "
                    "shorter rounds."
                )
        self._timers = []
