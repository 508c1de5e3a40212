"""Torch-Pruning's own iterative Taylor pruner, used as its documentation shows, as a method to compare with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.reference import reference_pruner
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.training.rounds import Moments
from lightning_mvp.training.task import TaskModule

# The number of batches over which gradients are added up for one decision, as in Torch-Pruning's examples.
SCORING_BATCHES = 10


class TorchPruningCutter:
    """Rounds by :func:`~lightning_mvp.backbones.reference.reference_pruner`.

    Args:
        module: the model to prune, in place.
        pruning: ratio, rounds and power of the schedule.
        example: a batch of images.
        batches: for the gradients of each decision.
    """

    masks = None  # Torch-Pruning does not say which units it removed.
    origin = Groups(())

    def __init__(
        self,
        module: TaskModule,
        pruning: PruningSettings,
        example: Tensor,
        batches: Iterator[tuple[Tensor, Tensor]],
    ) -> None:
        self.net, self.batches = nn.Sequential(module.backbone, module.head), batches
        schedule = pruning.schedule(pruning.warmup_steps + pruning.rounds)
        kept = [schedule.kept_fraction(round_) for round_ in range(1, pruning.rounds + 1)]
        self.pruner = reference_pruner(self.net, example, kept, [module.head])

    def observe(self, backbone: nn.Module) -> None:
        """Does nothing, because gradients are taken before each cut."""

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        self.net.train()
        self.net.zero_grad()
        for _, (images, labels) in zip(range(SCORING_BATCHES), self.batches, strict=False):
            F.cross_entropy(self.net(images), labels).backward()
        self.pruner.step()
        self.net.zero_grad()
        moments.clear()  # Torch-Pruning makes new parameters, for which its examples make new optimizers
        backbone, head = self.net[0], self.net[1]
        smaller = TaskModule.for_task(backbone, module.facts, **module.training_options)
        assert isinstance(head, nn.Linear)
        smaller.head = head
        return smaller
