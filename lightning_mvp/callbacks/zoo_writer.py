"""From a pruned model in a Trainer to an entry in a zoo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.small_head import small_head
from lightning_mvp.backbones.surgery import slice_state
from lightning_mvp.callbacks.fit_prototypes import FitPrototypes
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.zeros import require_zeroed
from lightning_mvp.zoo.new_entry import ZooTarget, entry_of


def write_entry_of_fit(
    target: ZooTarget,
    trainer: L.Trainer,
    pruner: Pruner,
    backbone: nn.Module,
    head: nn.Module | None,
    prototypes: FitPrototypes,
    info: Mapping[str, Any],
) -> None:
    """Add the entry. A timm classifier inside the backbone is the head if ``head`` is not a linear layer.

    Raises:
        OSError: the zoo can't be written, or is gone; the entry is kept in the Trainer's ``default_root_dir``.
        ValueError: other weights than those that were pruned have been loaded.
    """
    require_zeroed(backbone, pruner.groups, pruner.masks)
    groups, theta0 = pruner.prunable.every, target.theta0
    masks, importance = pruner.prunable.of_all_groups(pruner.masks, pruner.importance)
    state = slice_state(backbone.state_dict(), groups, masks)
    inner = f"{classifier_name(backbone)}."
    small = {name.removeprefix(inner): tensor for name, tensor in state.items() if name.startswith(inner)}
    if isinstance(head, nn.Linear):
        small = small_head(head, groups, masks).state_dict()
    entry = entry_of(
        target.task,
        target.config,
        masks,
        importance,
        {name: tensor for name, tensor in state.items() if name in theta0},
        small,
        prototypes.rows,
        info,
        kept=pruner.kept,
        metrics=trainer.callback_metrics,
        seen_by=prototypes.seen_by,
    )
    target.add(entry, Path(trainer.default_root_dir))
