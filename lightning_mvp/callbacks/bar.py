"""Epoch and pruning round in Lightning's progress bars, and messages that stand above a bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_module
from typing_extensions import override

from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.lightning_internals import name_epochs


def bar_words(trainer: L.Trainer, epoch: int) -> str:
    """How a bar is called: ``Epoch 0/4, round 3/8``, without what is not known."""
    known = trainer.max_epochs not in (None, -1)
    words = f"Epoch {epoch}/{trainer.max_epochs - 1}" if known else f"Epoch {epoch}"  # type: ignore[operator]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PruningState):
            words += f", round {callback.rounds_done}/{callback.settings.rounds}"
    return words


class RoundInBar(L.Callback):
    """Names the epoch, and the pruning round where there is one, in Lightning's progress bars.

    Where only ``max_steps`` ends a run, Lightning's own words are "Epoch 0/-2".
    """

    @staticmethod
    def serves(trainer: L.Trainer) -> bool:
        """Whether a bar of this Trainer tells the round."""
        known = isinstance(trainer.progress_bar_callback, (RichProgressBar, TQDMProgressBar))
        return known and any(isinstance(other, RoundInBar) for other in trainer.callbacks)  # type: ignore[attr-defined]

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before any bar is drawn: a Rich one asks for its words at each epoch."""
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar):
            name_epochs(bar, partial(bar_words, trainer))

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called last: the bar is as it was."""
        if isinstance(trainer.progress_bar_callback, RichProgressBar):
            name_epochs(trainer.progress_bar_callback, None)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch: a round may have happened, or a resumed run begun."""
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar):
            if bar.progress is not None and bar.train_progress_bar_id is not None:
                style, words = bar.theme.description, bar_words(trainer, trainer.current_epoch)
                words = f"[{style}]{words}" if style else words
                if bar.train_progress_bar.description != words:
                    bar.progress.update(bar.train_progress_bar_id, description=words)
        elif isinstance(bar, TQDMProgressBar):
            words = f"{bar_words(trainer, trainer.current_epoch)}: "  # as tqdm keeps it
            if bar.is_enabled and bar.train_progress_bar.desc != words:
                bar.train_progress_bar.set_description(words.removesuffix(": "))


@contextmanager
def above_the_bar(trainer: L.Trainer) -> Iterator[None]:
    """What is logged meanwhile stands above a live bar, which else would be drawn into it."""
    bar, live = trainer.progress_bar_callback, None
    moved: list[Any] = []
    if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        with suppress(TypeError):  # there is none before training
            live = bar.train_progress_bar
            live.clear()
    under = getattr(sys.stderr, "rich_proxied_file", None)  # a live Rich bar has taken the place of the terminal
    if under is not None:
        log: logging.Logger | None = rank_zero_module.log
        while log is not None:
            moved += [each for each in log.handlers if getattr(each, "stream", None) is under]
            log = log.parent if log.propagate else None
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(under)
        if live is not None:
            live.refresh()
