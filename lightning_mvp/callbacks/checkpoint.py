"""The best checkpoint among the pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_mvp.callbacks.pruned_metric import WaitsForPruning
from lightning_mvp.lightning_internals import require_checkpoint_methods


class PrunedCheckpoint(WaitsForPruning, ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` whose best model is a pruned one.

    The best model of a run is often one from before pruning, and a plain ``ModelCheckpoint(monitor=...)`` keeps that.
    Here ``best_model_path`` is the best *pruned* model: only values of the monitored metric count that were measured
    after MVPCallback's last round. If a run ends without a best model, a warning says why and what to do.

    Checkpoints for resuming are written before pruning, too. ``save_last=True`` writes ``last.ckpt`` whenever a save is
    due, from the beginning of the run on, and also where the metric is not among the best, so that ``ckpt_path="last"``
    goes on after a kill. ``save_last="link"`` does the same until there is a best model, and then links to the latest
    of those. Without ``monitor`` saves by ``every_n_train_steps`` or ``train_time_interval`` begin with the run, too.
    ``save_on_exception`` writes the model of that moment.

    Each new fit starts without a best model, because MVPCallback starts anew. A resumed fit has its checkpoint's.

    The arguments are those of ``lightning.pytorch.callbacks.ModelCheckpoint``, with the same defaults except for
    ``filename``: without one files are called ``epoch1-step20.ckpt``, a name that needs no quotes on a command line.
    Without ``monitor`` the latest pruned model is kept.

    Raises:
        ValueError: at the start of fit, a Trainer without MVPCallback.
        MisconfigurationException: arguments that Lightning refuses; at the first validation, a ``monitor`` that
            nobody logs.

    Example:
        >>> from lightning_mvp import MVPCallback
        >>> best = PrunedCheckpoint(monitor="val_loss", save_top_k=2)
        >>> trainer = L.Trainer(callbacks=[MVPCallback(), best], accelerator="cpu", logger=False)
        >>> trainer.checkpoint_callback is best, best.best_model_path
        (True, '')
    """

    _withheld = False
    _unpruned_path = ""
    _last_saved_at = -1

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called first: forgets the best model of an earlier fit."""
        require_checkpoint_methods(self)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.best_k_models = {}
            self.best_model_path = self.kth_best_model_path = self.last_model_path = self._last_checkpoint_saved = ""
            self.best_model_score = self.current_score = None
            self.kth_value = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
            self._last_global_step_saved = 0
            self._defer_save_until_validation = False
            self._unpruned_path, self._last_saved_at = "", -1

    # When a save is due -----------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._begin("batch", trainer)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch: a save may be due by steps or time."""
        counts, deferred = self._counts("batch", trainer), self._defer_save_until_validation
        self._defer_save_until_validation = False
        decide = super().on_train_batch_end
        self._decide(trainer, counts, lambda: decide(trainer, pl_module, outputs, batch, batch_idx))
        if self._defer_save_until_validation and not self._should_skip_saving_checkpoint(trainer):
            # The best model waits until the metric is measured; the last one need not.
            self._save_last_checkpoint(trainer, super()._monitor_candidates(trainer))
        self._defer_save_until_validation |= deferred

    @override
    def _decide(self, trainer: L.Trainer, counts: bool, decide: Callable[[], None]) -> None:
        """Let Lightning decide, and refuse a best model that it may not choose yet.

        Raises:
            RuntimeError: this version of Lightning chose one by other methods than those that are overridden here.
        """
        path, models = self.best_model_path, dict(self.best_k_models)
        self._withheld = not counts
        try:
            decide()
        finally:
            self._withheld = False
        wrong = {self.best_model_path, *self.best_k_models} - {path, *models}
        if wrong and not counts:
            self.best_model_path, self.best_k_models = path, models
            for each in wrong:
                trainer.strategy.remove_checkpoint(each)
            raise RuntimeError(
                f"Expected Lightning to keep only pruned models as the best, but {L.__version__} kept "
                f"{', '.join(sorted(wrong))} before one was measured; it has been removed. Install lightning>=2.6,<2.7."
            )

    @override
    def _monitor_candidates(self, trainer: L.Trainer) -> dict[str, Tensor]:
        # Lightning is not shown a value that does not count, so that a save that is due waits for the next validation.
        candidates = super()._monitor_candidates(trainer)
        if self._withheld and self.monitor is not None:
            candidates.pop(self.monitor, None)
        return candidates

    # What is saved ----------------------------------------------------------------------------------------------------

    @override
    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning calls this whenever a save is due, but saves the last model only after some of these calls.
        if not self._withheld:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        elif self.monitor is None and self.save_top_k != 0 and not self._every_n_epochs:
            self._save_unpruned(trainer, monitor_candidates)
        if self.save_last != "link" or not self.best_model_path:
            self._save_last_checkpoint(trainer, monitor_candidates)

    @override
    def _save_none_monitor_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        previous, self._unpruned_path = self._unpruned_path, ""
        super()._save_none_monitor_checkpoint(trainer, monitor_candidates)
        self._replace(trainer, previous, self.best_model_path)

    def _save_unpruned(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save the latest model, to go on from, without naming it as ``best_model_path``."""
        previous = self._unpruned_path
        self._unpruned_path = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer, previous)
        self._save_checkpoint(trainer, self._unpruned_path)
        self._replace(trainer, previous, self._unpruned_path)

    def _replace(self, trainer: L.Trainer, previous: str, current: str) -> None:
        if previous and self.save_top_k == 1 and self._should_remove_checkpoint(trainer, previous, current):
            self._remove_checkpoint(trainer, previous)

    @override
    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self._last_saved_at == trainer.global_step and self._last_checkpoint_saved == self.last_model_path:
            return  # the last model of this step is saved already
        wanted, step = self.save_last, self._last_global_step_saved
        if wanted and not self.best_model_path:  # there is no best model yet to link to
            self.save_last = True
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self.save_last = wanted
        if wanted:
            self._last_saved_at = trainer.global_step
            self._last_global_step_saved = step  # a best model of this step may still come

    @override
    def _format_checkpoint_name(
        self,
        filename: str | None,
        metrics: dict[str, Tensor],
        prefix: str | None = None,
        auto_insert_metric_name: bool = True,
    ) -> str:
        if not filename:  # a name that needs no quotes on a command line
            filename, auto_insert_metric_name = "epoch{epoch}-step{step}", False
        return super()._format_checkpoint_name(filename, metrics, prefix, auto_insert_metric_name)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint."""
        return {**super().state_dict(), "unpruned_path": self._unpruned_path}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called after :meth:`setup` where a run is resumed."""
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict["dirpath"]:
            self._unpruned_path = state_dict.get("unpruned_path", "")  # older checkpoints have none

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last training step: says so if there is no best model."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and self.save_top_k != 0:
            rank_zero_warn(f"{type(self).__name__} has no best model: {self._why_there_is_none()}")

    def _why_there_is_none(self) -> str:
        if not self.pruned:
            return (
                "the last pruning round had not happened when training ended. Raise max_steps or max_epochs, or prune "
                "in fewer or shorter rounds."
            )
        keep = "To keep the final weights, which are pruned, call trainer.save_checkpoint(path)."
        if self.monitor is None or self._counting is not None:
            return f"no save was due after the last pruning round. Save more often, or train longer. {keep}"
        return (
            f"`{self.monitor}` was not measured on the pruned model; what is measured before the last round, or over "
            "an epoch in which it happens, does not count. Raise max_steps or max_epochs, validate more often "
            f"(val_check_interval), or let the last round happen earlier. {keep}"
        )
