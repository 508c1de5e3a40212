"""A fit that goes on where it was stopped, from one checkpoint that is always whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_mvp.callbacks.random_state import KeepsRandomState

NAME = "last.ckpt"
SHARE = 20  # how many times longer training between two checkpoints takes than writing one, at least


class Resumable(KeepsRandomState, Checkpoint):
    """Keeps one checkpoint, from which the same fit goes on exactly, with torch's random state.

    It is written every so many seconds of training, at Ctrl-C and at SIGTERM, always after a whole step, and replaces
    the one before only when it is complete. Use ``with`` this callback around ``fit``: then the first Ctrl-C waits for
    the end of the step, writes the checkpoint and ends the fit with ``SystemExit(130)``. A second one stops at once.

    Args:
        folder: for ``last.ckpt``; it is made with the first checkpoint.
        seconds: between two checkpoints; 0 for one after every step. Where writing takes long they are fewer, so that
            it takes at most a twentieth of the time.

    Example:
        >>> Resumable("training", seconds=30).path.name
        'last.ckpt'
    """

    def __init__(self, folder: str | Path, seconds: float) -> None:
        self.path, self.seconds = Path(folder, NAME), seconds
        self.last_model_path = ""  # the path that MVPCallback names after a second Ctrl-C
        self._asked = self._handles = False

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint to go on from, for ``ckpt_path``; None if there is none yet."""
        return str(self.path) if self.path.exists() else None

    # Ctrl-C. Not in a hook, because Lightning restores the handlers that it found when the fit began ------------------

    def __enter__(self) -> Resumable:
        main = threading.current_thread() is threading.main_thread()
        self._handles = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._handles:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        rank_zero_info("Finishing the training step (or validation), then saving. Ctrl-C again stops at once.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._asked and kind is None:  # Ctrl-C came after the last step
            raise KeyboardInterrupt

    # Checkpoints ------------------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the first training step."""
        self.last_model_path = self.checkpoint or ""
        self._step, self._next = trainer.global_step, time.monotonic() + self.seconds
        if trainer.global_step:
            rank_zero_info(f"Going on after step {trainer.global_step} of {trainer.max_steps}.")

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch: saves after a whole step if it is time, or if somebody asked."""
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        agree = trainer.strategy.reduce_boolean_decision
        stop = agree(self._asked, all=False)
        if agree(stop or trainer.received_sigterm or time.monotonic() >= self._next, all=False):
            self._save(trainer)
        if stop:
            raise SystemExit(130)

    def _save(self, trainer: L.Trainer) -> None:
        """Save the checkpoint; all ranks take part, and rank 0 writes."""
        begin, partial = time.monotonic(), self.path.with_name(f".{NAME}.{os.getpid()}")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.path)
        self.last_model_path, now = str(self.path), time.monotonic()
        self._next = now + (self.seconds and max(self.seconds, SHARE * (now - begin)))
