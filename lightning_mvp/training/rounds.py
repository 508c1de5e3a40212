"""Iterative pruning that cuts: between rounds the model becomes physically smaller, and its steps cheaper.

What `MVPCallback` does by zeroing inside `fit`, here in a loop of our own on Lightning Fabric: the same scores, rounds,
rates and order of images, with the optimizer's state carried over. Several ranks may train: each round's smaller model
is wrapped anew, and one that is wrapped never changes its shapes, which would let ranks diverge silently.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.agreement import close_process_group_at_exit, require_equal_on_all_ranks
from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.regroup import groups_left
from lightning_mvp.backbones.small_head import small_head
from lightning_mvp.backbones.surgery import shrink, slice_state
from lightning_mvp.pruning.importance import (
    Scores,
    TaylorScores,
    magnitude_importance,
    normalised,
    random_importance,
)
from lightning_mvp.pruning.loss_watch import LossWatch
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.precision import resolve_precision
from lightning_mvp.training.task import TaskModule, one_cycle

Probe = Callable[[int, TaskModule], None]
# What an optimizer remembers in the shape of its parameters: key (such as momentum_buffer) → parameter → value.
Moments = dict[str, dict[str, Tensor]]


PREFIX = "backbone."
PRECISIONS = ("32-true", "bf16-mixed")


class Cutter(Protocol):
    """How a round is decided and done."""

    def see(self, module: TaskModule) -> None:
        """Look at the gradients of a step, before they are clipped."""

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        """The smaller module after a round; the optimizer's `moments` are cut along, or cleared."""

    @property
    def masks(self) -> Masks | None:
        """The units of the origin that are left, where that is known."""

    @property
    def origin(self) -> Groups:
        """The groups of what they are units of."""


class OwnCutter:
    """Our scores and masks: Taylor, magnitude or random.

    Args:
        groups: of what is pruned; those that are not among them stay whole.
        cost: of the same backbone.
        pruning: criterion, scope and so on.
        options: of the optimizer, for the smaller module.
        masks: what is left in the beginning, if not all,
        present: and the groups of the model that is left.

    Attributes:
        importance: ``(units,)`` for each group: a unit's last score before it was removed, by its group's mean.
    """

    def __init__(
        self,
        groups: Groups,
        cost: CostModel,
        pruning: PruningSettings,
        options: dict[str, Any],
        masks: Masks | None = None,
        present: Groups | None = None,
    ) -> None:
        self.origin, self.cost, self.pruning, self.options = groups, cost, pruning, options
        full = Masks.full(groups)
        self.masks = full if masks is None else Masks({name: masks[name] for name in full})
        self.importance: Scores = {group.name: torch.zeros(group.size) for group in groups}
        self.round = 0
        # Of the model as it is now.
        self.groups = groups if present is None else present
        self._begin()

    def _begin(self) -> None:
        """Scores start afresh, of a model that nobody has seen yet."""
        self.scores = TaylorScores(self.groups)
        self._parameters: dict[str, nn.Parameter] = {}

    def see(self, module: TaskModule) -> None:
        if self.pruning.criterion == "taylor":
            if not self._parameters:
                self._parameters = dict(module.backbone.named_parameters())
            gradients = {name: self._parameters[name].grad for name in self.scores.gates.tensors}
            self.scores.update(self._parameters, gradients)

    def _scores(self, module: TaskModule) -> Scores:
        """In the origin's units; those that are gone count nothing."""
        if self.pruning.criterion == "random":
            return random_importance(self.origin, self.pruning.seed * 1_000_003 + self.round)
        own = (
            self.scores.means()
            if self.pruning.criterion == "taylor"
            else magnitude_importance(module.backbone.state_dict(), self.groups)
        )
        scores = {}
        for name, mask in self.masks.items():
            scores[name] = torch.zeros(len(mask))
            scores[name][mask] = own[name]
        return scores

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        """One round.

        Raises:
            RuntimeError: there are no scores: no step with finite gradients was seen.
        """
        self.round += 1
        scores = self._scores(module)
        chosen = self.pruning.choose(scores, self.masks, kept_fraction, self.origin, self.cost)
        for name, score in normalised(scores, self.masks).items():
            self.importance[name] = torch.where(self.masks[name], score, self.importance[name]).float()
        left = Masks({name: mask[self.masks[name]] for name, mask in chosen.items()})
        small = shrink(module.backbone, self.groups, left)
        smaller = TaskModule.for_task(small, module.facts, **self.options)
        smaller.head = small_head(module.head, self.groups, left)
        features = torch.as_tensor(self.groups.kept_features(left, module.head.in_features))
        for named in moments.values():
            own = {name.removeprefix(PREFIX): value for name, value in named.items() if name.startswith(PREFIX)}
            named |= {f"{PREFIX}{name}": value for name, value in slice_state(own, self.groups, left).items()}
            if "head.weight" in named:
                weight = named["head.weight"]
                named["head.weight"] = weight[:, features.to(weight.device)]
        self.groups = groups_left(self.groups, left, module.backbone, module.head.in_features)
        self.masks = chosen
        self._begin()
        return smaller


def make_fabric(
    accelerator: str = "cpu",
    devices: Any = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: str = "auto",
    network: nn.Module | None = None,
) -> L.Fabric:
    """Where :func:`prune_and_cut` trains: one process, or ranks that hold the whole model each.

    Args:
        accelerator: as the Trainer's, like what follows.
        devices: how many, or which.
        strategy: ``"auto"``, or one of the ``"ddp"`` family.
        num_nodes: how many machines.
        precision: ``"auto"``, ``"32-true"`` or ``"bf16-mixed"``.
        network: what will be trained, which ``"auto"`` depends on.

    Raises:
        ValueError: a strategy that shares the model out, or a precision that needs its gradients scaled.

    Example:
        >>> make_fabric(precision="16-mixed")
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `precision` to be one of ('auto', '32-true', 'bf16-mixed') where units are cut \
between rounds, but got '16-mixed'. A MVPCallback in a Trainer prunes with any.
    """
    if strategy != "auto" and not strategy.startswith("ddp"):
        raise ValueError(
            f"Expected argument `strategy` to be 'auto' or 'ddp' where units are cut between rounds, but got "
            f"{strategy!r}: each rank must have the whole model."
        )
    chosen = resolve_precision(precision, accelerator, network)
    if chosen not in PRECISIONS:
        raise ValueError(
            f"Expected argument `precision` to be one of {('auto', *PRECISIONS)} where units are cut between rounds, "
            f"but got {precision!r}. A MVPCallback in a Trainer prunes with any."
        )
    return L.Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision=chosen,  # type: ignore[arg-type]
    )


def endless(data: TaskDataModule, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of a rank, epoch after epoch, in the order in which a Trainer sees them."""
    loader = data.train_dataloader()
    loader.rank, loader.world_size = rank, world_size
    while True:
        yield from loader


class _Classifier(nn.Module):
    """Features, and the logits that a head makes of them."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.head(features)


class _Set:
    """A module and its optimizer as Fabric wraps them, until the next round.

    Args:
        fabric: wraps them.
        module: plain.
        moments: what an earlier optimizer remembers, by name of the parameter: what has its shape,
        counters: and what has not.
    """

    def __init__(
        self,
        fabric: L.Fabric,
        module: TaskModule,
        moments: Moments | None = None,
        counters: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.module = module.to(fabric.device).train()
        self.optimizer = module.make_optimizer()
        for name, parameter in module.named_parameters() if moments else ():
            own = {key: named[name] for key, named in (moments or {}).items() if name in named}
            self.optimizer.state[parameter].update(own | (counters or {}).get(name, {}))
        # Not the LightningModule itself: Fabric would keep each round's, and call its hooks.
        network = _Classifier(module.backbone, module.head)
        self.network, self.stepper = fabric.setup(network, self.optimizer, move_to_device=False)

    def remembered(self) -> tuple[Moments, dict[str, dict[str, Any]]]:
        """The optimizer's state by parameter name: what has the parameter's shape, and the rest, such as its step."""
        moments: Moments = {}
        counters: dict[str, dict[str, Any]] = {}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments.setdefault(key, {})[name] = value
                elif value is not None:
                    counters.setdefault(name, {})[key] = value
        return moments, counters


def prune_and_cut(
    module: TaskModule,
    data: TaskDataModule,
    cutter: Cutter,
    pruning: PruningSettings,
    steps: int,
    *,
    clip: float | None = None,
    precision: str = "auto",
    fabric: L.Fabric | None = None,
    probe: Probe | None = None,
) -> TaskModule:
    """Train for so many steps, cutting after each round.

    Args:
        module: the model to prune; it is used up.
        data: of the task.
        cutter: decides and does the rounds.
        pruning: gives the schedule.
        steps: optimizer steps in all.
        clip: largest gradient norm; None leaves gradients as they are.
        precision: as the Trainer's, for this process on the CPU alone;
        fabric: or launched ranks, each of which calls this with the same model.
        probe: called with the number of steps done and the model.

    Returns:
        The small model, the same on all ranks but for batch-norm statistics, of which rank 0's count.

    Raises:
        FloatingPointError: the loss is not finite.
        RuntimeError: ranks have decided a round differently, or no gradients were finite.
    """
    fabric = make_fabric(precision=precision, network=module) if fabric is None else fabric
    if fabric.world_size > 1:
        close_process_group_at_exit()
    schedule, rounds_done, watch = pruning.schedule(steps), 0, LossWatch(zeroes=False)
    batches = endless(data, fabric.global_rank, fabric.world_size)
    peak, onecycle = module.hparams["learning_rate"], module.hparams["schedule"] == "onecycle"
    module.require_teacher()
    teacher = copy.copy(module.teacher) if module.mimic else None
    elsewhere, now = fabric.device.type != "cpu", _Set(fabric, module)
    for step in range(steps):
        images, labels = next(batches)
        if elsewhere:
            images, labels = fabric.to_device((images, labels))
        for group in now.optimizer.param_groups:
            group["lr"] = peak * (one_cycle(step, steps) if onecycle else 1.0)
        now.optimizer.zero_grad(set_to_none=True)
        images = images.contiguous(memory_format=now.module.layout)
        features, logits = now.network(images)
        loss = F.cross_entropy(logits.float(), labels)
        if teacher is not None:
            with fabric.autocast():
                loss = loss + module.mimic * teacher.loss(features, images)
        fabric.backward(loss)
        if rounds_done < pruning.rounds and step >= pruning.warmup_steps:
            cutter.see(now.module)
        if clip is not None:
            fabric.clip_gradients(now.network, now.stepper, max_norm=clip, error_if_nonfinite=False)
        now.stepper.step()
        watch.see(loss, step + 1)
        due = schedule.rounds_due(step + 1)
        if due > rounds_done:
            watch.check()
            moments, counters = now.remembered()
            smaller = cutter.cut(now.module, moments, schedule.kept_fraction(due))
            if teacher is not None and cutter.masks is not None and teacher.map is None:
                teacher.keep(cutter.origin, cutter.masks)
            elif teacher is not None:  # a map knows nothing of the features that are left
                teacher.follow(smaller.backbone, data)
            if cutter.masks is not None:
                require_equal_on_all_ranks(fabric, cutter.masks.fingerprint, due)
            now, rounds_done = _Set(fabric, smaller, moments, counters), due
            watch.after_round(due, step + 1)
        if probe is not None:
            probe(step + 1, now.module)
            now.module.train()
    watch.check()
    return now.module
