"""Every private name of Lightning, and of torch where Lightning puts it, that the package uses, and what it is for.

Each is used where no public name gives the same. ``tests/test_internals.py`` fails when one of them is gone, and the
methods of ModelCheckpoint are checked whenever a PrunedCheckpoint is made, because it overrides them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from inspect import signature
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

SpawningLauncher = _MultiProcessingLauncher
"""What starts the ranks of ``ddp_spawn``: processes that copy weights back into the first one."""

ScriptLauncher = _SubprocessScriptLauncher
"""What starts the ranks of ``ddp`` by running the command again."""

# What PrunedCheckpoint overrides or uses of ModelCheckpoint: methods with parameters, and attributes; and what for.
CHECKPOINT_METHODS = {
    "_save_topk_checkpoint(trainer, monitor_candidates)": "overridden: only a pruned model is among the best",
    "_save_none_monitor_checkpoint(trainer, monitor_candidates)": "overridden: the first pruned model replaces",
    "_save_last_checkpoint(trainer, monitor_candidates)": "overridden: written once for each save that is due",
    "_monitor_candidates(trainer)": "overridden: hides a value that was not measured on the pruned model",
    "_format_checkpoint_name(filename, metrics, prefix, auto_insert_metric_name)": "overridden: names without quotes",
    "_get_metric_interpolated_filepath_name(monitor_candidates, trainer, del_filepath)": "gives a free file name",
    "_save_checkpoint(trainer, filepath)": "writes a checkpoint",
    "_remove_checkpoint(trainer, filepath)": "removes the one that another replaces",
    "_should_remove_checkpoint(trainer, previous, current)": "says whether that one is ours to remove",
    "_should_skip_saving_checkpoint(trainer)": "says whether this step was saved already",
    "_last_checkpoint_saved": "the file of the last save",
    "_last_global_step_saved": "the step of the last save",
    "_defer_save_until_validation": "whether a save that is due waits for the metric",
    "_every_n_epochs": "whether saves are due by epochs",
}


def require_checkpoint_methods(callback: ModelCheckpoint) -> None:
    """Refuse a Lightning whose ModelCheckpoint has other private methods: it might keep an unpruned model as the best.

    Raises:
        RuntimeError: one is missing or has other parameters; all of those are named.

    Example:
        >>> require_checkpoint_methods(ModelCheckpoint())
    """
    changed = []
    for entry in CHECKPOINT_METHODS:
        name, _, parameters = entry.rstrip(")").partition("(")
        there = getattr(ModelCheckpoint if parameters else callback, name, None)
        if there is None or (parameters and not ", ".join(signature(there).parameters).endswith(parameters)):
            changed.append(name)
    if changed:
        raise RuntimeError(
            f"Expected a Lightning whose ModelCheckpoint has {', '.join(changed)} as in version 2.6, but this is "
            f"{L.__version__}, where they are gone or take other arguments. Install lightning>=2.6,<2.7, or use "
            "Lightning's ModelCheckpoint(save_last=True) without `monitor`."
        )


def latest_checkpoint(callback: Any) -> str:
    """The file that a checkpoint callback wrote last; empty if there is none."""
    names = ("last_model_path", "_last_checkpoint_saved", "best_model_path")
    return next((path for name in names if (path := getattr(callback, name, ""))), "")


def dump_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """What ``Trainer.save_checkpoint`` would write, without waiting for the other ranks."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def averaged_models(trainer: L.Trainer) -> Iterator[AveragedModel]:
    """The averages that WeightAveraging callbacks keep, which must begin anew after a pruning round."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback._average_model


def logged_step(trainer: L.Trainer) -> int:
    """The x axis of what Lightning logs: batches that stepped, which ``global_step`` is not with several optimizers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def name_epochs(bar: RichProgressBar, words: Callable[[int], str] | None) -> None:
    """Let a Rich bar name epochs by ``words(epoch)``, or by its own again; one of a subclass that does so, does so."""
    if type(bar)._get_train_description is RichProgressBar._get_train_description:
        vars(bar).pop("_get_train_description", None)
        if words is not None:
            bar._get_train_description = words  # type: ignore[assignment, method-assign]


def prepared_batch(trainer: L.Trainer, batch: Any) -> Any:
    """A batch of the training loader as ``training_step`` gets it: with the hooks of its transfer, on the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def converts_batch_norms(trainer: L.Trainer) -> bool:
    """Whether the Trainer was made with ``sync_batchnorm=True``. It has no public attribute that says so."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None


def timeout_of(strategy: Any) -> timedelta:
    """How long the ranks of a DDP strategy wait for each other in a collective, or to be there at all."""
    return getattr(strategy, "_timeout", None) or timedelta(minutes=30)


def set_timeout(strategy: Any, seconds: float) -> None:
    """Set that for a strategy that was chosen by name, and so made by Lightning; others than DDP have none."""
    if hasattr(strategy, "_timeout"):
        strategy._timeout = timedelta(seconds=seconds)


def group_store() -> Any:
    """The store through which the ranks of the process group have found each other."""
    return distributed.distributed_c10d._get_default_store()


def default_store(address: str, port: int, first: bool) -> Any:
    """A store that ``init_process_group`` would open or reach at this address, without waiting for the other ranks.

    Args:
        address: of rank 0.
        port: there.
        first: whether this process opens it; the process group that it makes later then uses the same.
    """
    return distributed.TCPStore(
        address, port, is_master=first, timeout=timedelta(minutes=1), wait_for_workers=False, multi_tenant=first
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether a module or a part of it is under ``torch.compile``, called by the user or by Lightning."""
    parts = any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in module.modules())
    return parts or getattr(module, "_compiler_ctx", None) is not None


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside the wrapper that ``torch.compile(module)`` makes, which has other names for its parameters."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original


def require_lightning(trainer: Any) -> None:
    """Refuse the Trainer of ``pytorch_lightning``: that package's classes are not those that our checks know.

    Raises:
        TypeError: it is no ``lightning.pytorch.Trainer``.
    """
    if not isinstance(trainer, L.Trainer):
        kind = type(trainer)
        raise TypeError(
            f"Expected a Trainer of the package `lightning`, but got {kind.__module__}.{kind.__qualname__}. Write "
            "`import lightning as L` in place of `import pytorch_lightning as pl`, for Trainer, LightningModule and "
            "callbacks alike; their names and arguments are the same."
        )
