"""What pruning without a Trainer leaves of one task."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.table import pruning_table
from lightning_mvp.training.task import TaskModule


@dataclass(frozen=True)
class CutRun:
    """What came of one task.

    Args:
        module: the small model.
        masks: the units kept, of the groups that were pruned.
        val_accuracy: on the task's validation images.
        seconds: of training, rounds included; or of what is done in its place.
        groups: those that were pruned.
        cost: of the backbone before.
        rounds: step, round and fraction of units left at the start and after each round; empty without training.
    """

    module: TaskModule
    masks: Masks
    val_accuracy: float
    seconds: float
    groups: Groups
    cost: CostModel
    rounds: tuple[tuple[int, int, float], ...] = ()

    def table(self) -> Table:
        """Units, parameters and MACs before and after, for ``rich.print``."""
        return pruning_table(self.groups, self.masks, self.cost)
