"""Iterative pruning that cuts: between rounds the model becomes physically smaller, and its steps cheaper.

What `MVPCallback` does by zeroing, in one process and outside `fit`: the same scores, rounds, rates and order of
images, with the optimizer's state carried over. The rivals in a comparison are pruned so, because they should be as
fast as they can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.surgery import shrink, slice_state
from lightning_mvp.callbacks.settings import PruningSettings
from lightning_mvp.callbacks.zoo_export import small_head
from lightning_mvp.modules.fit import resolve_precision
from lightning_mvp.modules.task import TaskModule, one_cycle
from lightning_mvp.pruning.importance import Scores, TaylorScores, magnitude_importance
from lightning_mvp.study.origin import Origin
from lightning_mvp.tasks.datamodule import TaskDataModule

Probe = Callable[[int, TaskModule], None]
# What an optimizer remembers in the shape of its parameters: key (such as momentum_buffer) → parameter → value.
Moments = dict[str, dict[str, Tensor]]


PREFIX = "backbone."


class Cutter(Protocol):
    """How a round is decided and done."""

    def see(self, module: TaskModule) -> None:
        """Look at the gradients of a step, before they are clipped."""

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        """The smaller module after a round; the optimizer's `moments` are cut along, or cleared."""

    @property
    def masks(self) -> Masks | None:
        """The units of the origin that are left, where that is known."""


class OwnCutter:
    """Our scores and masks: Taylor or magnitude.

    Args:
        origin: what is pruned.
        pruning: criterion, scope and so on.
        options: of the optimizer, for the smaller module.
        masks: what is left of the origin in the beginning, if not all,
        backbone: and the model that is left.
    """

    def __init__(
        self,
        origin: Origin,
        pruning: PruningSettings,
        options: dict[str, Any],
        masks: Masks | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        self.origin, self.pruning, self.options = origin, pruning, options
        full = Masks.full(origin.pruned)
        self.masks = full if masks is None else Masks({name: masks[name] for name in full})
        # Of the model as it is now.
        self.groups = origin.pruned if backbone is None else origin.pruned_of(backbone)
        self.scores = TaylorScores(self.groups)

    def see(self, module: TaskModule) -> None:
        if self.pruning.criterion == "taylor":
            parameters = dict(module.backbone.named_parameters())
            self.scores.update(parameters, {name: parameters[name].grad for name in self.scores.gates.tensors})

    def _scores(self, module: TaskModule) -> Scores:
        own = (
            self.scores.means()
            if self.pruning.criterion == "taylor"
            else magnitude_importance(module.backbone.state_dict(), self.groups)
        )
        scores = {}
        for name, mask in self.masks.items():  # in the origin's units; those that are gone count nothing
            scores[name] = torch.zeros(len(mask))
            scores[name][mask] = own[name]
        return scores

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        chosen = self.pruning.choose(
            self._scores(module), self.masks, kept_fraction, self.origin.pruned, self.origin.cost
        )
        left = Masks({name: mask[self.masks[name]] for name, mask in chosen.items()})
        small = shrink(module.backbone, self.groups, left)
        smaller = TaskModule.for_task(small, module.facts, **self.options)
        smaller.head = small_head(module.head, self.groups, left)
        features = torch.as_tensor(self.groups.kept_features(left, module.head.in_features))
        for named in moments.values():
            own = {name.removeprefix(PREFIX): value for name, value in named.items() if name.startswith(PREFIX)}
            named |= {f"{PREFIX}{name}": value for name, value in slice_state(own, self.groups, left).items()}
            if "head.weight" in named:
                named["head.weight"] = named["head.weight"][:, features]
        self.masks, self.groups = chosen, self.origin.pruned_of(small)
        self.scores = TaylorScores(self.groups)
        return smaller


def endless(data: TaskDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches, epoch after epoch, in the order in which a Trainer sees them."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def prune_and_cut(
    module: TaskModule,
    data: TaskDataModule,
    cutter: Cutter,
    pruning: PruningSettings,
    steps: int,
    *,
    clip: float | None = None,
    precision: str = "auto",
    probe: Probe | None = None,
) -> TaskModule:
    """Train for so many steps, cutting after each round.

    Args:
        module: the model to prune; it is used up.
        data: of the task.
        cutter: decides and does the rounds.
        pruning: gives the schedule.
        steps: optimizer steps in all.
        clip: largest gradient norm.
        precision: as the Trainer's.
        probe: called with the number of steps done and the model.

    Returns:
        The small model.
    """
    schedule, rounds_done, batches = pruning.schedule(steps), 0, endless(data)
    optimizer, peak = module.make_optimizer(), module.hparams["learning_rate"]
    module.train()
    for step in range(steps):
        images, labels = next(batches)
        rate = peak * (one_cycle(step, steps) if module.hparams["schedule"] == "onecycle" else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with _precision(precision):
            logits = module(images.contiguous(memory_format=module.layout))
        F.cross_entropy(logits.float(), labels).backward()
        if rounds_done < pruning.rounds and step >= pruning.warmup_steps:
            cutter.see(module)
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        due = schedule.rounds_due(step + 1)
        if due > rounds_done:
            moments, counters = _remembered(module, optimizer)
            module = cutter.cut(module, moments, schedule.kept_fraction(due)).train()
            optimizer, rounds_done = module.make_optimizer(), due
            if moments:
                for name, parameter in module.named_parameters():
                    own = {key: named[name] for key, named in moments.items() if name in named}
                    optimizer.state[parameter].update(own | counters.get(name, {}))
        if probe is not None:
            probe(step + 1, module)
            module.train()
    return module


def _remembered(module: TaskModule, optimizer: torch.optim.Optimizer) -> tuple[Moments, dict[str, dict[str, Any]]]:
    """The optimizer's state by parameter name: what has the parameter's shape, and the rest, such as its step."""
    moments: Moments = {}
    counters: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments.setdefault(key, {})[name] = value
            elif value is not None:
                counters.setdefault(name, {})[key] = value
    return moments, counters


def _precision(precision: str) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=resolve_precision(precision) == "bf16-mixed")
