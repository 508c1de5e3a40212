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
