"""What the callback refuses beside it, and the check that all ranks decided alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.schedule import Schedule

LOW_RATE = 0.05


def refuse_what_cannot_work(trainer: L.Trainer) -> None:
    """Refuse, by name, what would be silently wrong together with pruning."""
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise ValueError(
            f"Expected a strategy in which each rank holds whole parameters (ddp or a single device), but got "
            f"{type(trainer.strategy).__name__}, which splits them. Use strategy='ddp'."
        )
    callbacks: Sequence[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, (EarlyStopping, StochasticWeightAveraging, WeightAveraging)):
            raise ValueError(
                f"Expected no {type(callback).__name__} beside MVPCallback: it would stop before, or average across, "
                "pruning rounds. Take it out of the Trainer's callbacks."
            )
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            rank_zero_warn(
                f"ModelCheckpoint(monitor={callback.monitor!r}) may pick an epoch before the last pruning round, that "
                "is, an unpruned model. Use its last checkpoint."
            )


def require_time_for(schedule: Schedule, steps: float) -> None:
    """Refuse a schedule that is longer than the run.

    Args:
        schedule: the rounds.
        steps: the optimizer steps that the Trainer will do; may be ``inf``.

    Example:
        >>> require_time_for(Schedule(0.5, rounds=2, steps_per_round=10), steps=15)
        Traceback (most recent call last):
        ...
        ValueError: Expected a run of at least 20 optimizer steps: `warmup_steps`=0 + `rounds`=2 × \
`steps_per_round`=10, but the Trainer will do 15. Raise max_steps or max_epochs, or prune in fewer or shorter rounds.
    """
    if steps < schedule.last_step:
        raise ValueError(
            f"Expected a run of at least {schedule.last_step} optimizer steps: `warmup_steps`={schedule.warmup_steps} "
            f"+ `rounds`={schedule.rounds} × `steps_per_round`={schedule.steps_per_round}, but the Trainer will do "
            f"{steps:.0f}. Raise max_steps or max_epochs, or prune in fewer or shorter rounds."
        )


def warn_of_low_rate(rate: float, peak: float) -> None:
    """After the last round fine-tuning needs a learning rate that still moves the weights."""
    if rate < LOW_RATE * peak:
        rank_zero_warn(
            f"The learning rate is {rate:.2g} at the last pruning round, under {LOW_RATE:.0%} of its peak {peak:.2g}: "
            "there is little fine-tuning after it. Let the last round happen earlier or the rate fall later."
        )


def require_equal_on_all_ranks(trainer: L.Trainer, masks: Masks, round_: int) -> None:
    """Ranks that decide differently diverge silently: compare one hash, and raise on all of them."""
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256(masks.fingerprint.encode()).digest()
    own = torch.tensor(list(digest), dtype=torch.int64, device=trainer.strategy.root_device)
    gathered = trainer.strategy.all_gather(own)
    assert isinstance(gathered, Tensor)
    differing = [rank for rank, other in enumerate(gathered) if not torch.equal(other, gathered[0])]
    if differing:
        raise RuntimeError(
            f"The masks of pruning round {round_} differ between ranks: rank(s) {differing} disagree with rank 0. "
            "Gradients were not the same on all ranks; look for parameters that DDP does not synchronise."
        )
