"""torch's random state in a checkpoint, so that dropout and the like go on exactly where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_mvp.words import counted

KEY = "lightning_mvp_random_states"


def random_state(device: torch.device) -> Tensor:
    """The generators of the CPU and, on a GPU, of this process's device: uint8 of one axis."""
    cpu = torch.get_rng_state()
    return cpu if device.type != "cuda" else torch.cat([cpu, torch.cuda.get_rng_state(device)])


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Restore what :func:`random_state` returned; on another kind of device only the CPU's part of it."""
    cpu_size = len(torch.get_rng_state())
    # Cloned, because torch 2.15 crashes on a view into a larger tensor.
    torch.set_rng_state(state[:cpu_size].clone())
    if device.type == "cuda" and len(state) > cpu_size:
        torch.cuda.set_rng_state(state[cpu_size:].clone(), device)


def random_states(trainer: L.Trainer) -> list[Tensor]:
    """The state of every rank. After an exception it is that of this rank alone, since the others may not answer."""
    device = trainer.strategy.root_device
    own = random_state(device)
    if trainer.world_size == 1 or trainer.state.status == TrainerStatus.INTERRUPTED:
        return [own]
    gathered = trainer.strategy.all_gather(own.to(device))
    assert isinstance(gathered, Tensor)
    return [state.clone() for state in gathered.cpu()]  # a view would be saved with the memory of all


def set_random_states(trainer: L.Trainer, states: Sequence[Tensor]) -> None:
    """Restore this rank's state. States of another number of ranks are not restored, with a warning."""
    if len(states) == trainer.world_size:
        set_random_state(states[trainer.global_rank], trainer.strategy.root_device)
    else:
        rank_zero_warn(
            f"The checkpoint has the random state of {counted(len(states), 'rank')} and there are "
            f"{trainer.world_size}: dropout and the like go on with other numbers than in a run without interruption."
        )


class KeepsRandomState(L.Callback):
    """Saves torch's random state with each checkpoint; a resumed run goes on with it from its first batch."""

    _random_states: Sequence[Tensor] | None = None

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called for each checkpoint, by every rank."""
        checkpoint[KEY] = random_states(trainer)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called where a run is resumed, after ``setup``."""
        self._random_states = checkpoint.get(KEY)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch; a resumed run restores before its first, since its start draws numbers."""
        if self._random_states is not None:
            set_random_states(trainer, self._random_states)
            self._random_states = None
