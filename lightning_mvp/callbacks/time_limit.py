"""Whether ``max_time`` can hold the schedule: known once a few steps have been timed."""

from __future__ import annotations

from datetime import timedelta

import lightning as L
from lightning.pytorch.callbacks import Timer

# The first steps are slow (compilation, memory, workers starting).
WARM_UP = 3
TIMED = 10


class TimeLimit:
    """Refuses, after :data:`WARM_UP` + :data:`TIMED` steps, a run whose ``max_time`` ends before the last round.

    Args:
        trainer: with or without ``max_time``.
        first_step: optimizer steps done when the run (re)starts.
        last_step: optimizer steps after which the last round happens.
    """

    def __init__(self, trainer: L.Trainer, first_step: int, last_step: int) -> None:
        self._timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        self._timing_from, self._last_step = first_step + WARM_UP, last_step
        self._began: tuple[int, float] | None = None

    def start_anew(self) -> None:
        """Time from the next step on: something else than steps comes now."""
        self._began = None

    def check(self, trainer: L.Trainer, step: int) -> None:
        """Call after every step.

        Raises:
            ValueError: the time left is too short, by the speed so far.
        """
        if not self._timers or step < self._timing_from:
            return
        if self._began is None:
            self._began = step, self._timers[0].time_elapsed()
            return
        first, began = self._began
        if step - first < TIMED:
            return
        for timer in self._timers:
            # Clocks differ between ranks; a decision must not.
            clocks = began, timer.time_elapsed(), timer.time_remaining()
            began, elapsed, left = trainer.strategy.broadcast(clocks)
            needed = (elapsed - began) / (step - first) * (self._last_step - step)
            if left is not None and needed > left:
                raise ValueError(
                    f"Expected `max_time` to hold the pruning schedule, but its last round, at step {self._last_step}, "
                    f"would come after about {timedelta(seconds=round(elapsed + needed))} at the speed so far, and "
                    f"{timedelta(seconds=round(elapsed + left))} are allowed. Raise max_time, or prune in fewer or "
                    "shorter rounds."
                )
        self._timers = []
