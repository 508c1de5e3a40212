"""Watches for a loss that becomes NaN or infinite, and tells whether a pruning round is the likely cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_mvp.words import counted

STEPS_BETWEEN_QUESTIONS = 50  # a GPU is asked this rarely, because each question waits for it
# Within so many steps the round is the likely cause. A gradient that is not finite after it makes the weights infinite
# or NaN in the same step, and the loss in the next.
STEPS_AFTER_ROUND = 3
# A loss that had grown by this factor since the round was diverging, for which the learning rate is the likely cause.
RUNAWAY = 100.0
LOOK_FOR_ZERO_CHANNELS = (
    "look for an operation whose value or slope is not finite where channels are zero, as the removed ones are, such "
    "as a square root, a logarithm, a norm or a division. Add a small number inside and take it off again, so that "
    "zero stays zero: (x.pow(2).mean((2, 3)) + 1e-6).sqrt() - 1e-3."
)


class LossWatch:
    """Remembers the first step whose loss was not finite, and whether a pruning round came right before it.

    A loss on the CPU is checked at once. A loss on a GPU is checked there, and the result is fetched every
    :data:`STEPS_BETWEEN_QUESTIONS` steps and by :meth:`check`.

    Args:
        zeroes: whether rounds zero the units that they remove, rather than cut them out.

    Example:
        >>> LossWatch().see({"loss": torch.tensor(float("nan"))}, 7)
        Traceback (most recent call last):
        ...
        FloatingPointError: The loss is not finite at step 7. Nothing was written. Lower the learning rate, or look \
for images or labels that are not finite.
    """

    def __init__(self, zeroes: bool = True) -> None:
        self.zeroes = zeroes
        self._first: Tensor | None = None
        self._last = self._at_round = torch.zeros(())  # the last finite loss, and that before the last round
        self._round = self.round_step = 0
        self._seen = 0

    def after_round(self, round_: int, step: int) -> None:
        """Remember that a round has happened.

        Args:
            round_: its number, counted from 1.
            step: optimizer steps done before it, counted as by :meth:`see`.
        """
        self._round, self.round_step, self._at_round = round_, step, self._last

    def see(self, outputs: Any, step: int) -> None:
        """Look at a training step's loss.

        Args:
            outputs: what Lightning hands to ``on_train_batch_end``: a tensor, a mapping with ``loss``, or None.
            step: optimizer steps done, for the message.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._first is None:
            self._first = torch.full((), -1, device=loss.device)
            self._last = torch.zeros((), device=loss.device)
        finite, size = torch.isfinite(loss.detach()).all(), loss.detach().abs().max().float()
        self._first = torch.where(~finite & (self._first < 0), step, self._first)
        self._last = torch.where(finite & (self._first < 0), size, self._last)
        self._seen += 1
        if loss.device.type == "cpu" or self._seen % STEPS_BETWEEN_QUESTIONS == 0:
            self.check()

    def check(self) -> None:
        """Raise if a loss was not finite so far; this waits for the GPU.

        Raises:
            FloatingPointError: a loss was NaN or infinite.
        """
        if self._first is not None and self._first >= 0:
            step = int(self._first)
            raise FloatingPointError(
                f"The loss is not finite at step {step}. Nothing was written. {self._advice(step)}"
            )

    def _advice(self, step: int) -> str:
        usual = "Lower the learning rate, or look for images or labels that are not finite."
        before, last = float(self._at_round), float(self._last)
        after = step - self.round_step
        if not self._round or not 0 < after <= STEPS_AFTER_ROUND or last > RUNAWAY * max(1.0, before):
            return usual
        began = (
            f"It began right after round {self._round} of pruning, {counted(after, 'step')} after it, and the loss "
            f"was finite until then ({last:.3g})"
        )
        if self.zeroes:
            return f"{began}: {LOOK_FOR_ZERO_CHANNELS} If there is none: {usual[0].lower()}{usual[1:]}"
        return f"{began}: remove less at a time (more rounds, or a smaller pruning_ratio), or lower the learning rate."
