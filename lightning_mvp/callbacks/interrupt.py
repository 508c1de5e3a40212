"""Ctrl-C: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info

NAME = "interrupted.ckpt"


class Interrupt:
    """Holds the first Ctrl-C back until a step is done: in the middle of one weights and counters don't fit together.

    A second one interrupts at once. Only rank 0 acts on the first; the others end with it.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._in_step = self._hold_between = False
        self._acts = True
        self.asked = False
        """Whether Ctrl-C was pressed."""
        self.between_steps = False
        """Whether it took effect between two steps, where weights and counters fit together."""

    def install(self, trainer: L.Trainer, hold_between: bool) -> None:
        """Take Ctrl-C over from Python; whoever else handles it keeps it.

        Args:
            trainer: whose rank 0 acts.
            hold_between: hold it back also while the next batch is fetched, for a loader whose state must not run
                ahead of the steps; not for one with worker processes, which Ctrl-C ends, too.
        """
        self._hold_between, self._acts = hold_between, trainer.is_global_zero
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._note)

    def restore(self) -> None:
        """Give Ctrl-C back."""
        if self._previous is not None and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.restore()
        self.asked = True
        if self._acts and not self._in_step and not self._hold_between:
            self.between_steps = True
            raise KeyboardInterrupt
        rank_zero_info("Finishing the training step (or validation), then saving. Ctrl-C again stops at once.")

    def begin_step(self) -> None:
        """Call when a batch has been fetched."""
        self._in_step = True

    def end_step(self) -> None:
        """Call after each step.

        Raises:
            KeyboardInterrupt: on rank 0, if Ctrl-C was pressed meanwhile.
        """
        self._in_step = False
        if self.asked and self._acts:
            self.between_steps = True
            raise KeyboardInterrupt


def save_interrupted(trainer: L.Trainer, interrupt: Interrupt, moment: str) -> None:
    """After Ctrl-C: write a checkpoint beside the Trainer's others, unless a step was cut, and say how to go on.

    Rank 0 writes alone: after an exception nobody knows whether the other ranks still answer.

    Args:
        trainer: one that enables checkpoints, else nothing is written.
        interrupt: how it came.
        moment: how far the run came, in words.
    """
    checkpoints = trainer.checkpoint_callback
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar):  # its display is live, and would be drawn over what is said now
        bar.on_exception(trainer, trainer.lightning_module, KeyboardInterrupt())
    folder = getattr(checkpoints, "dirpath", None)
    names = ("last_model_path", "_last_checkpoint_saved", "best_model_path")
    path = next((path for name in names if (path := getattr(checkpoints, name, ""))), "")
    if folder and interrupt.between_steps:
        path = str(Path(folder) / NAME)
        if trainer.is_global_zero:
            # Trainer.save_checkpoint would wait for the other ranks.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, path)
    if path:
        rank_zero_info(f"Interrupted: {moment}. Go on with trainer.fit(..., ckpt_path={path!r}).")
    else:
        rank_zero_info(f"Interrupted: {moment}. There is no checkpoint to go on from; ModelCheckpoint writes them.")
