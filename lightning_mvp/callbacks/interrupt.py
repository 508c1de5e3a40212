"""Ctrl-C: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

NAME = "interrupted.ckpt"


class Interrupt:
    """Holds the first Ctrl-C back until a step is done: in the middle of one weights and counters don't fit together.

    A second one interrupts at once.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._asked = False
        self.after_step = False
        """Whether it came between two steps, where a checkpoint is exact."""

    def install(self) -> None:
        """Take Ctrl-C over from Python; whoever else handles it keeps it."""
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
        self._asked = True
        rank_zero_info("Finishing the training step, then saving. Ctrl-C again stops at once.")

    def check(self) -> None:
        """Call after each step.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed meanwhile.
        """
        if self._asked:
            self.after_step = True
            raise KeyboardInterrupt


def save_interrupted(trainer: L.Trainer, interrupt: Interrupt, moment: str) -> None:
    """After Ctrl-C: write a checkpoint beside the Trainer's others, if it is exact, and say how to go on.

    Rank 0 writes alone: after an exception nobody knows whether the other ranks still answer.

    Args:
        trainer: one that enables checkpoints, else nothing is written.
        interrupt: how it came.
        moment: how far the run came, in words.
    """
    checkpoints = trainer.checkpoint_callback
    folder = getattr(checkpoints, "dirpath", None)
    path = getattr(checkpoints, "last_model_path", "") or getattr(checkpoints, "best_model_path", "")
    if folder and interrupt.after_step:
        path = str(Path(folder) / NAME)
        if trainer.is_global_zero:
            # Trainer.save_checkpoint would wait for the other ranks.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, path)
    if path:
        rank_zero_info(f"Interrupted: {moment}. Go on with trainer.fit(..., ckpt_path={path!r}).")
    else:
        rank_zero_info(f"Interrupted: {moment}. There is no checkpoint to go on from; ModelCheckpoint writes them.")
