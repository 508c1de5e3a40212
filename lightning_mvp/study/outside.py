"""A reference that is not ours: Torch-Pruning's own iterative Taylor pruner, used as its documentation does."""

from __future__ import annotations

from collections.abc import Iterator

import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.callbacks.settings import PruningSettings
from lightning_mvp.modules.task import TaskModule

# Gradients for one decision are added up over so many batches, as its examples do.
SCORING_BATCHES = 10


class TorchPruningCutter:
    """Rounds by ``tp.pruner.BasePruner`` with ``GroupTaylorImportance``, every layer by the same ratio.

    Args:
        module: the model to prune, in place.
        pruning: ratio, rounds and power of the schedule.
        example: a batch of images.
        batches: for the gradients of each decision.
        options: of the optimizer, for the smaller module.
    """

    masks = None

    def __init__(
        self,
        module: TaskModule,
        pruning: PruningSettings,
        example: Tensor,
        batches: Iterator[tuple[Tensor, Tensor]],
        options: dict[str, object],
    ) -> None:
        self.net, self.batches, self.options = nn.Sequential(module.backbone, module.head), batches, options
        schedule = pruning.schedule(pruning.warmup_steps + pruning.rounds)

        def ratios(_: float, rounds: int) -> list[float]:
            return [0.0, *(1 - schedule.kept_fraction(round_ + 1) for round_ in range(rounds))]

        self.pruner = tp.pruner.BasePruner(
            self.net,
            example,
            importance=tp.importance.GroupTaylorImportance(),
            pruning_ratio=pruning.pruning_ratio,
            iterative_steps=pruning.rounds,
            iterative_pruning_ratio_scheduler=ratios,
            ignored_layers=[module.head],
        )

    def see(self, module: TaskModule) -> None:
        """Nothing: it takes gradients of its own before each cut."""

    def cut(self, module: TaskModule, momentum: dict[str, Tensor], kept_fraction: float) -> TaskModule:
        self.net.train()
        self.net.zero_grad()
        for _, (images, labels) in zip(range(SCORING_BATCHES), self.batches, strict=False):
            F.cross_entropy(self.net(images), labels).backward()
        self.pruner.step()
        self.net.zero_grad()
        momentum.clear()  # it makes new parameters, and its examples new optimizers
        backbone, head = self.net[0], self.net[1]
        smaller = TaskModule.for_task(backbone, module.facts, **self.options)
        assert isinstance(head, nn.Linear)
        smaller.head = head
        return smaller
