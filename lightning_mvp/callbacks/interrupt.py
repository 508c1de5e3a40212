"""Ctrl-C ends a fit after the present step, with a checkpoint to go on from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_mvp.callbacks.guards import loaders_have_state, loaders_have_workers
from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.lightning_internals import dump_checkpoint, latest_checkpoint

NAME = "interrupted.ckpt"


class Interrupt(L.Callback):
    """Delays the first Ctrl-C until a step is done, then writes a checkpoint; a second one interrupts at once.

    In the middle of a step weights and counters don't fit together. Where the training loader has a state and no worker
    processes, Ctrl-C also waits while a batch is fetched, because that state must not run ahead of the steps. Worker
    processes end at Ctrl-C by themselves. Only rank 0 acts on the first Ctrl-C, and the other ranks end with it.
    Another handler of SIGINT that is there already is not replaced.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._pruning: PruningState | None = None
        self._step, self._acts = 0, False
        self._asked = self._in_step = self._waits_for_batch = self._between_steps = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the first training step: takes Ctrl-C over from Python."""
        self._pruning = PruningState.beside(self, trainer)
        self._step, self._acts = self._pruning.step, trainer.is_global_zero
        self._asked = self._in_step = self._between_steps = False
        self._waits_for_batch = loaders_have_state(trainer) and not loaders_have_workers(trainer)
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._note)

    def _restore(self) -> None:
        """Give Ctrl-C back."""
        if self._previous is not None and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._restore()
        self._asked = True
        if not self._in_step and not self._waits_for_batch:
            self._interrupt()
        rank_zero_info("Finishing the training step (or validation), then saving. Ctrl-C again stops at once.")

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt between two steps, where weights and counters fit together."""
        if self._asked and self._acts:
            self._between_steps = True
            raise KeyboardInterrupt

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called when a training batch has been fetched."""
        self._in_step = True

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch; a step ends where its gradients are not accumulated further."""
        assert self._pruning is not None
        if self._pruning.step > self._step:
            self._step, self._in_step = self._pruning.step, False
            self._interrupt()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last training step and validation."""
        self._interrupt()
        self._restore()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Called when an error, or Ctrl-C, ends the run.

        After Ctrl-C a checkpoint is written beside the Trainer's others, unless a step was cut short, and a message
        says how to go on. Rank 0 writes alone, since the other ranks may have ended.
        """
        self._restore()
        if not isinstance(exception, KeyboardInterrupt) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._pruning is None or not self._pruning.step:
            return
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar):  # else its live display would be drawn over the message
            bar.on_exception(trainer, pl_module, exception)
        path = latest_checkpoint(trainer.checkpoint_callback)
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder and self._between_steps:
            path = str(Path(folder) / NAME)
            if trainer.is_global_zero:
                # Trainer.save_checkpoint would wait for the other ranks.
                trainer.strategy.save_checkpoint(dump_checkpoint(trainer), path)
        rounds = f"{self._pruning.rounds_done} of {self._pruning.settings.rounds}"
        how = (
            f"Go on with trainer.fit(..., ckpt_path={path!r})."
            if path
            else "There is no checkpoint to go on from; ModelCheckpoint writes them."
        )
        rank_zero_info(f"Interrupted: {self._pruning.step} steps and {rounds} pruning rounds are done. {how}")
