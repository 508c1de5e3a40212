"""Refusals and warnings, before training, of what can't work together with pruning."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.lightning_internals import converts_batch_norms, is_compiled
from lightning_mvp.pruning.loss_watch import LOOK_FOR_ZERO_CHANNELS
from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.pruning.zeros import masks_from_zeros
from lightning_mvp.tasks.loader import TaskLoader


def refuse_what_cannot_work(trainer: L.Trainer) -> None:
    """Refuse, by name, what would be silently wrong together with pruning.

    Callbacks with a true attribute ``waits_for_pruning`` do nothing before the last round, and pass.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise ValueError(
            f"Expected a strategy in which each rank holds whole parameters (ddp or a single device), but got "
            f"{type(trainer.strategy).__name__}, which splits them. Use strategy='ddp'."
        )
    callbacks: Sequence[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if sum(isinstance(callback, PruningState) for callback in callbacks) > 1:
        raise ValueError(
            "Expected one MVPCallback in the Trainer, but got several: they would undo each other's masks."
        )
    for callback in callbacks:
        name = type(callback).__name__
        if getattr(callback, "waits_for_pruning", False):
            continue
        if isinstance(callback, EarlyStopping):
            raise ValueError(
                f"Expected no {name} beside MVPCallback: it could stop before the last pruning round. Use "
                "lightning_mvp.PrunedEarlyStopping with the same arguments, whose patience begins after that round."
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                f"Expected no {name} beside MVPCallback: it would average across pruning rounds. Use Lightning's "
                "WeightAveraging or EMAWeightAveraging, whose average begins anew after each round."
            )
        if isinstance(callback, ModelPruning):
            raise ValueError(
                f"Expected no {name} beside MVPCallback: both would prune the same weights. Use one of them; masks of "
                "a model that ModelPruning pruned are written by MaskExport."
            )
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            rank_zero_warn(
                f"{name}(monitor={callback.monitor!r}) may pick an epoch before the last pruning round, that is, an "
                "unpruned model. Use lightning_mvp.PrunedCheckpoint with the same arguments, or its last checkpoint."
            )


def refuse_hidden_input(module: L.LightningModule) -> None:
    """Refuse a compiled module without example input, since hooks, which would see its first input, may not run in it.

    Raises:
        ValueError: it is under torch.compile.
    """
    if is_compiled(module):
        raise ValueError(
            "Expected argument `example_input` with a module under torch.compile, but got None, and the module has no "
            "`example_input_array` either. Give a batch of images or its shape."
        )


def refuse_lossy_sync_batch_norm(trainer: L.Trainer, backbone: nn.Module) -> None:
    """Refuse ``sync_batchnorm=True`` where the conversion would drop the activation inside one of timm's norms.

    Raises:
        ValueError: a batch norm, which is named, has an activation inside.
    """
    if not converts_batch_norms(trainer):
        return
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(True for _ in module.children()):
            raise ValueError(
                f"Expected plain batch norms with sync_batchnorm=True, but `{name}` is a {type(module).__name__} with "
                "an activation inside, which Lightning's conversion drops. Convert the backbone yourself with "
                "timm.layers.convert_sync_batchnorm and leave sync_batchnorm off."
            )


def warn_of_guessed_steps(schedule: Schedule, steps: float) -> None:
    """Warn that the number of steps is an assumption, because with manual optimization only the module knows it."""
    rank_zero_warn(
        "With manual optimization the number of optimizer steps is not known before training. One step of the "
        f"backbone's optimizer for each batch is assumed, {steps:.0f} in all, with the last pruning round after step "
        f"{schedule.last_step}. Give `steps_per_round` if that is wrong."
    )


def warn_of_missing_rounds(done: int, rounds: int, step: int, zoo: bool, scored: bool) -> None:
    """Warn that fit ended before the last round, and say why if the steps since the last one gave no scores.

    Args:
        done: how many rounds have happened.
        rounds: how many rounds there should have been.
        step: how many optimizer steps have been done.
        zoo: whether an entry should have been written.
        scored: whether there are scores for the next round.
    """
    why = ""
    if done and not scored:  # the loss does not show it, because precision 16-mixed skips such steps
        why = f" Since round {done} no step had finite gradients: {LOOK_FOR_ZERO_CHANNELS}"
    rank_zero_warn(
        f"Pruning is not complete: {done} of {rounds} rounds had happened when fit ended, after {step} steps of an "
        f"optimizer that owns the backbone.{why}" + (" Nothing was added to the zoo." if zoo else "")
    )


def warn_of_dead_units(backbone: nn.Module, groups: Groups) -> None:
    """Warn of units that are zero before pruning begins, because the backbone was pruned already."""
    masks = masks_from_zeros(backbone, groups)
    dead = sum(masks.sizes.values()) - sum(masks.kept.values())
    if dead:
        rank_zero_warn(
            f"{dead} of the backbone's {sum(masks.sizes.values())} units are zero before pruning begins, as after an "
            "earlier fit. Pruning begins anew, and they count as units. To prune the dense model, "
            "load its weights; to go on, resume with ckpt_path."
        )


def loaders_have_state(trainer: L.Trainer) -> bool:
    """Whether a resumed run can go on with the next images, because every training loader has a state."""
    return all(hasattr(loader, "load_state_dict") for loader in CombinedLoader(trainer.train_dataloader).flattened)


def loaders_have_workers(trainer: L.Trainer) -> bool:
    """Whether a training loader has processes of its own that Ctrl-C in a terminal ends; a `TaskLoader`'s ignore it."""
    loaders = CombinedLoader(trainer.train_dataloader).flattened
    return any(getattr(loader, "num_workers", 0) for loader in loaders if not isinstance(loader, TaskLoader))


def warn_of_forgetful_loaders() -> None:
    """Warn that a resumed run gets other images than an uninterrupted one, because its loader has no state."""
    rank_zero_warn(
        "Masks, scores and schedule go on where the checkpoint left them, but a loader without state_dict can't: the "
        "images come in another order than in a run without interruption. TaskDataModule's loader can."
    )
