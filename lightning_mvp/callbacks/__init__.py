"""Callbacks for anybody's Trainer."""

from lightning_mvp.callbacks.checkpoint import PrunedCheckpoint
from lightning_mvp.callbacks.early_stopping import PrunedEarlyStopping
from lightning_mvp.callbacks.finite_loss import FiniteLoss
from lightning_mvp.callbacks.mask_export import MaskExport
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.callbacks.run_picture import RunPicture

__all__ = ["FiniteLoss", "MVPCallback", "MaskExport", "PrunedCheckpoint", "PrunedEarlyStopping", "RunPicture"]
