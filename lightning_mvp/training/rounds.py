"""Iterative pruning that cuts: after each round the model is physically smaller, and its steps are cheaper.

`MVPCallback` zeroes removed units while a Trainer fits. The loop here, on Lightning Fabric, does the same by cutting:
scores, rounds, rates and the order of images are the same, and the optimizer's state is carried over. Several ranks may
train. Each round's smaller model is wrapped anew; a model that is wrapped never changes its shapes, because ranks could
then diverge without an error.
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
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.regroup import groups_left
from lightning_mvp.backbones.small_head import small_head
from lightning_mvp.backbones.surgery import shrink, slice_state
from lightning_mvp.lightning_internals import set_timeout
from lightning_mvp.pruning.engine import Engine
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

    def observe(self, backbone: nn.Module) -> None:
        """Look at the gradients of a step, before they are clipped."""

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        """The smaller module after a round; the optimizer's `moments` are cut along, or cleared."""

    @property
    def masks(self) -> Masks | None:
        """The units of :attr:`origin` that are left; None where the cutter does not know them."""

    @property
    def origin(self) -> Groups:
        """The groups of the backbone with which pruning began."""


class OwnCutter(Engine):
    """Rounds by our engine, whose removed units are cut out."""

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        """One round.

        Raises:
            RuntimeError: there are no scores: no step with finite gradients was seen.
        """
        before = self.decide(module.backbone, self.round + 1, kept_fraction)
        left = Masks({name: mask[before[name]] for name, mask in self.masks.items()})
        small = shrink(module.backbone, self.groups, left)
        smaller = TaskModule.for_task(small, module.facts, **module.training_options)
        smaller.head = small_head(module.head, self.groups, left)
        features = torch.as_tensor(self.groups.kept_features(left, module.head.in_features))
        for named in moments.values():
            own = {name.removeprefix(PREFIX): value for name, value in named.items() if name.startswith(PREFIX)}
            named |= {f"{PREFIX}{name}": value for name, value in slice_state(own, self.groups, left).items()}
            if "head.weight" in named:
                weight = named["head.weight"]
                named["head.weight"] = weight[:, features.to(weight.device)]
        self._begin(groups_left(self.groups, left, module.backbone, module.head.in_features))
        return smaller


def make_fabric(
    accelerator: str = "cpu",
    devices: Any = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: str = "auto",
    network: nn.Module | None = None,
    timeout: float | None = None,
) -> L.Fabric:
    """Where :func:`prune_and_cut` trains: one process, or ranks that hold the whole model each.

    Args:
        accelerator: as the Trainer's.
        devices: how many, or which, as the Trainer's.
        strategy: ``"auto"``, or one of the ``"ddp"`` family.
        num_nodes: how many machines.
        precision: ``"auto"``, ``"32-true"`` or ``"bf16-mixed"``.
        network: what will be trained, which ``"auto"`` depends on.
        timeout: seconds that ranks wait for each other; None: Lightning's half hour.

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
    fabric = L.Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision=chosen,  # type: ignore[arg-type]
    )
    if timeout is not None:
        set_timeout(fabric.strategy, timeout)
    return fabric


def endless(
    data: TaskDataModule, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of a rank, epoch after epoch, in the order in which a Trainer sees them."""
    loader = data.train_dataloader()
    loader.rank, loader.world_size, loader.pin_memory = rank, world_size, pin_memory
    while True:
        yield from loader


def require_known_optim(optimizer: Any, schedule: Any) -> None:
    """Refuse an optimizer or a schedule by its import path: nobody knows what it remembers of cut parameters.

    Raises:
        ValueError: one of them is not ours; the message says what to do.
    """
    for name, choice in (("optimizer", optimizer), ("schedule", schedule)):
        if not isinstance(choice, str):
            raise ValueError(
                f"Expected argument `{name}` to be one of ours by name where units are cut between rounds, as in a "
                f"study, but got {dict(choice)!r}. Take another, or let a Trainer zero units: mvp-prune without "
                "cut_between_rounds."
            )


class _Classifier(nn.Module):
    """Features, and the logits that a head makes of them."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.head(features)


class _Training:
    """A module and its optimizer as Fabric wraps them, until the next round.

    Args:
        fabric: wraps them.
        module: plain.
        moments: what the optimizer of the round before remembers in the shapes of its parameters; None: nothing.
        counters: what else it remembers, such as numbers of steps: parameter → key → value; None: nothing.
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
        """The optimizer's state: what has its parameter's shape, and the rest by parameter name and key."""
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
        precision: as the Trainer's; used without ``fabric``, where this process trains alone on the CPU.
        fabric: launched ranks, each of which calls this with the same model; None: this process alone.
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
    batches = endless(data, fabric.global_rank, fabric.world_size, pin_memory=fabric.device.type == "cuda")
    require_known_optim(module.hparams["optimizer"], module.hparams["schedule"])
    peak, onecycle = module.hparams["learning_rate"], module.hparams["schedule"] == "onecycle"
    module.require_teacher()
    teacher = copy.copy(module.teacher) if module.mimic else None
    elsewhere, now = fabric.device.type != "cpu", _Training(fabric, module)
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
            cutter.observe(now.module.backbone)
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
            elif teacher is not None:  # its map is of features that may be gone, so a new one is fitted
                teacher.follow(smaller.backbone, data)
            if cutter.masks is not None:
                require_equal_on_all_ranks(fabric, cutter.masks.fingerprint, due)
            now, rounds_done = _Training(fabric, smaller, moments, counters), due
            watch.after_round(due, step + 1)
        if probe is not None:
            probe(step + 1, now.module)
            now.module.train()
    watch.check()
    return now.module
