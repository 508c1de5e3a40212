"""One fit of one module on one task: the settings that every run shares."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities.rank_zero import rank_zero_module
from torch import Tensor, nn

from lightning_mvp.backbones.passes import Place
from lightning_mvp.callbacks.finite_loss import FiniteLoss
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.lightning_internals import set_timeout
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.precision import resolve_precision
from lightning_mvp.training.task import TaskModule

PACKAGE = str(Path(__file__).parents[1])


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.pathname.startswith(PACKAGE)


def _is_file(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.FileHandler)


def quiet_lightning() -> None:
    """Leave out, in this process, what Lightning says of itself: devices, tips, guesses at mistakes.

    Our own messages come through the same logger and stay, as do warnings of any other category.
    """
    logging.getLogger("lightning").propagate = False  # it has a handler of its own: Hydra's would show all twice
    # The job's log file, which Hydra has opened, gets our messages, too; that of the job before is done with.
    log, files = rank_zero_module.log, [each for each in logging.getLogger().handlers if _is_file(each)]
    log.handlers = [*(handler for handler in log.handlers if not _is_file(handler)), *files]
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    rank_zero_module.log.setLevel(logging.INFO)
    rank_zero_module.log.addFilter(_matters)
    warnings.simplefilter("ignore", PossibleUserWarning)
    # torch, about calls of Lightning's own.
    warnings.filterwarnings("ignore", message=".*(LeafSpec|nn.functional.all_gather).* is deprecated")


class AccuracyCurve(L.Callback):
    """Records test accuracy after given numbers of steps, for a report; nothing is decided by it.

    Args:
        images: raw test images, uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        steps: optimizer steps after which to evaluate; 0 is before the first.
    """

    def __init__(self, images: Tensor, labels: Tensor, steps: Sequence[int]) -> None:
        self.images, self.labels, self.steps = images, labels, set(steps)
        self.points: list[tuple[int, float]] = []
        self.seconds = 0.0

    def evaluate(self, module: L.LightningModule, step: int) -> None:
        """Record the accuracy now, if it is wanted after so many steps and was not taken yet."""
        if step in self.steps and all(step != done for done, _ in self.points):
            assert isinstance(module, TaskModule)
            start = time.perf_counter()
            self.points.append((step, module.accuracy_on(self.images, self.labels)))
            self.seconds += time.perf_counter() - start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluate(pl_module, 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.evaluate(pl_module, trainer.global_step)


class EntryFacts(L.Callback):
    """What a run came to, for its zoo entry: ``data``, ``seconds`` of training, ``val_accuracy``; before MVPCallback.

    Args:
        pruning: the callback that writes the entry.
        datamodule: of the task.
    """

    def __init__(self, pruning: MVPCallback, datamodule: TaskDataModule) -> None:
        self.pruning, self.datamodule = pruning, datamodule

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pruning.info["seconds"] = time.perf_counter() - self._start

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        self.pruning.info |= self.datamodule.data.described()
        self.pruning.info["val_accuracy"] = pl_module.accuracy_in(self.datamodule, device=Place.of(trainer))


class StepSeconds(L.Callback):
    """Times each step, for an estimate.

    Attributes:
        seconds: of each step, from one batch's end to the next one's.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def make_trainer(
    steps: int,
    callbacks: Sequence[L.Callback] = (),
    *,
    network: nn.Module | None = None,
    timeout: float | None = None,
    **options: Any,
) -> L.Trainer:
    """A Trainer for ``steps`` optimizer steps.

    Args:
        steps: of the optimizer.
        callbacks: after :class:`~lightning_mvp.callbacks.finite_loss.FiniteLoss`.
        network: what it will train, for ``precision="auto"``; see :func:`resolve_precision`. Of the same kind on all
            ranks, so not a :class:`~lightning_mvp.training.meta_vote.MetaVoteModule` that waits for rank 0.
        timeout: seconds that the ranks of a ``"ddp"`` strategy wait for each other; None: Lightning's half hour. A
            strategy that is given as an object has its own.
        options: the Trainer's own; ``precision`` may be ``"auto"``, the default.
    """
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **options}
    options["precision"] = resolve_precision(options.get("precision", "auto"), options["accelerator"], network)
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, callbacks=[FiniteLoss(), *callbacks], **options)
    if timeout is not None and isinstance(options.get("strategy", "auto"), str):
        set_timeout(trainer.strategy, timeout)
    return trainer


def fit_quietly(
    module: TaskModule,
    datamodule: TaskDataModule,
    steps: int,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> None:
    """Train for ``steps`` optimizer steps without display, validation or files: one of many runs of a study."""
    if steps == 0:
        return
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*")
        make_trainer(steps, callbacks, network=module, **{**quiet, **options}).fit(module, datamodule=datamodule)
