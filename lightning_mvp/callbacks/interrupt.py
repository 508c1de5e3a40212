"""What Ctrl-C leaves behind."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

NAME = "interrupted.ckpt"


def save_interrupted(trainer: L.Trainer, moment: str) -> None:
    """Write a checkpoint beside the Trainer's others and say how to go on from it.

    At most the batch that was interrupted is lost or counts twice. Rank 0 writes alone: after an exception nobody
    knows whether the other ranks still answer.

    Args:
        trainer: one that enables checkpoints, else nothing is written.
        moment: how far the run came, in words.
    """
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if not folder:
        rank_zero_info(f"Interrupted: {moment}. Nothing was saved, because the Trainer writes no checkpoints.")
    elif trainer.is_global_zero:
        path = Path(folder) / NAME
        # Trainer.save_checkpoint would wait for the other ranks.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, path)
        rank_zero_info(f"Interrupted: {moment}. Go on with trainer.fit(..., ckpt_path={str(path)!r}).")
