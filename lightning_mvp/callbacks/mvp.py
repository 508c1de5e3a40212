"""Iterative pruning inside anybody's Trainer, and the zoo entry that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import rich
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Dead, Masks, dead_entries, zero_entries
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.callbacks.finite_loss import require_finite
from lightning_mvp.callbacks.guards import refuse_what_cannot_work, require_equal_on_all_ranks
from lightning_mvp.callbacks.resolve import check_head, first_tensor, resolve_module
from lightning_mvp.callbacks.table import pruning_table
from lightning_mvp.callbacks.zoo_export import open_zoo, small_head, write_to_zoo
from lightning_mvp.pruning.choose import RatioOf, Scope, choose_masks, require_choice
from lightning_mvp.pruning.importance import (
    Scores,
    TaylorScores,
    magnitude_importance,
    normalised,
    random_importance,
)
from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.zoo import ModelZoo

Criterion = Literal["taylor", "magnitude", "random"]

# What the last rounds need after them: fine-tuning takes the rest of the steps.
SHARE_OF_STEPS_FOR_ROUNDS = 0.6


@dataclass(frozen=True)
class RoundPlan:
    """One round of :meth:`MVPCallback.preview`: ``widths`` and ``macs`` are None where only scores will tell."""

    round: int
    step: int | None
    kept_fraction: float
    widths: dict[str, int] | None
    macs: int | None


class MVPCallback(L.Callback):
    """Prunes a LightningModule's backbone in rounds while it trains, and adds the result to a zoo.

    Scores are taken from gradients that exist anyway, in ``on_before_optimizer_step``, where they are averaged over
    ranks and unscaled. During fit removed units are only zeroed; :meth:`small_model` cuts them out afterwards. The
    callback never stops training: what follows the last round is fine-tuning.

    Args:
        criterion: ``"taylor"``, ``"magnitude"`` or ``"random"`` (the control).
        pruning_ratio: the fraction removed in the end, in (0, 1).
        ratio_of: what that is a fraction of: ``"units"``, ``"params"`` or ``"macs"``.
        rounds: how many times units are removed.
        warmup_steps: optimizer steps before the first round's steps.
        steps_per_round: optimizer steps before each round; default: 60 % of the run's steps over the rounds.
        scope: ``"layer"``: every group loses the same fraction; ``"global"``: one ranking of normalised scores.
        backbone: dotted name of the backbone in the LightningModule.
        head: dotted name of the linear layer that follows it. Without it (and without a timm classifier inside the
            backbone) units that are the backbone's output stay, since nobody knows who reads them.
        example_input: a batch of images; default: ``module.example_input_array``, else the backbone's first input.
        task: facts of the task; required with ``zoo``.
        zoo: folder of the zoo to which the pruned model is added when fit ends.
        floor: the least number of units a group keeps.
        power: of the schedule's curve; above 1 the first rounds remove less.
        seed: of random scores; part of the zoo entry's id.

    Raises:
        ValueError: an argument out of its range, at once; what can't be seen before (no such submodule, a head that
            doesn't fit, frozen units, a schedule longer than the run, an entry that is already in the zoo, a foreign
            zoo), at the start of fit, before any step.

    Example:
        >>> callback = MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=5)
        >>> callback.pruning_ratio
        0.5
        >>> MVPCallback(pruning_ratio=1.5)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `pruning_ratio` to be a float in (0, 1), but got 1.5. ...
    """

    def __init__(
        self,
        criterion: Criterion = "taylor",
        pruning_ratio: float = 0.8,
        ratio_of: RatioOf = "units",
        rounds: int = 8,
        warmup_steps: int = 0,
        steps_per_round: int | None = None,
        scope: Scope = "layer",
        backbone: str = "backbone",
        head: str | None = None,
        example_input: Any = None,
        task: TaskFacts | None = None,
        zoo: str | Path | None = None,
        floor: int = 1,
        power: float = 1.0,
        seed: int = 0,
    ) -> None:
        require_choice("criterion", criterion, Criterion)
        require_choice("ratio_of", ratio_of, RatioOf)
        require_choice("scope", scope, Scope)
        Schedule(pruning_ratio, rounds, 1 if steps_per_round is None else steps_per_round, warmup_steps, power)
        if zoo is not None and task is None:
            raise ValueError(
                "Expected argument `task` to be given with `zoo`, but got None. A zoo entry says what it was pruned "
                "for: pass TaskFacts(name, classes, input_size, mean, std)."
            )
        if example_input is not None:
            example_input = first_tensor(example_input)
        self.criterion, self.scope, self.ratio_of = criterion, scope, ratio_of
        self.pruning_ratio, self.rounds, self.warmup_steps = pruning_ratio, rounds, warmup_steps
        self.steps_per_round, self.floor, self.power, self.seed = steps_per_round, floor, power, seed
        self.backbone_name, self.head_name = backbone, head
        self.example_input, self.task, self.zoo = example_input, task, zoo
        self._reset()

    def _reset(self) -> None:
        self.schedule: Schedule | None = None
        self.step = 0
        self.round = 0
        self.importance: Scores = {}
        self.theta0: dict[str, Tensor] | None = None
        self._masks: Masks | None = None
        self._groups: Groups | None = None
        self._cost: CostModel | None = None
        self._scores: TaylorScores | None = None
        self._dead: Dead = {}
        self._module: L.LightningModule | None = None
        self._example: Tensor | None = self.example_input
        self._hook: RemovableHandle | None = None
        self._stepped = False

    # What a user reads ------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Groups:
        """The groups of units found on the backbone."""
        if self._groups is None:
            raise RuntimeError(
                "Groups are found when fit starts; call trainer.fit(module) or callback.preview() first."
            )
        return self._groups

    @property
    def masks(self) -> Masks:
        """The units kept so far."""
        if self._masks is None:
            raise RuntimeError("There are no masks before fit; call trainer.fit(module) first.")
        return self._masks

    @property
    def finished(self) -> bool:
        """Whether the last round has happened."""
        return self.round == self.rounds

    def small_model(self) -> nn.Module:
        """The pruned model, physically small, as a plain module on the CPU in eval mode.

        Returns:
            The small backbone, followed by the small head where ``head`` was given.

        Raises:
            RuntimeError: before fit.
        """
        if self._module is None:
            raise RuntimeError("There is no pruned model before fit; call trainer.fit(module) first.")
        backbone = self._backbone(self._module)
        small = shrink(backbone, self.groups, self.masks).cpu().eval()
        if self.head_name is None:
            return small
        head = resolve_module(self._module, self.head_name, "head")
        assert isinstance(head, nn.Linear)
        return nn.Sequential(small, small_head(head, self.groups, self.masks)).eval()

    def preview(
        self, module: L.LightningModule, example_input: Any = None, steps: int | None = None
    ) -> list[RoundPlan]:
        """What each round will leave, before any training.

        Args:
            module: the LightningModule.
            example_input: a batch of images; default as in fit.
            steps: the run's optimizer steps, needed for the rounds' steps where ``steps_per_round`` is None.

        Returns:
            A plan for each round. With global scope widths depend on scores that nobody has yet: None.
        """
        example = example_input if example_input is not None else self._first_example(module)
        if example is None:
            raise ValueError("Expected argument `example_input` to be a batch of images, but got None.")
        backbone = self._backbone(module)
        groups = self._select(backbone, first_tensor(example))
        cost = CostModel(backbone, groups, first_tensor(example))
        per_round = self.steps_per_round or (None if steps is None else self._default_steps_per_round(steps))
        schedule = Schedule(self.pruning_ratio, self.rounds, per_round or 1, self.warmup_steps, self.power)
        masks, plans = Masks.full(groups), []
        for round_ in range(1, self.rounds + 1):
            fraction, known = schedule.kept_fraction(round_), self.scope == "layer"
            if known:
                masks = choose_masks(
                    {group.name: torch.zeros(group.size) for group in groups},
                    masks,
                    fraction,
                    ratio_of=self.ratio_of,
                    cost=cost,
                    floor=self.floor,
                )
            plans.append(
                RoundPlan(
                    round_,
                    None if per_round is None else schedule.step_of(round_),
                    fraction,
                    dict(masks.kept) if known else None,
                    cost.macs(masks) if known else None,
                )
            )
        return plans

    def table(self) -> Table:
        """Units, parameters and MACs before and after, for ``rich.print``."""
        return pruning_table(self.groups, self.masks, self.cost, f"Pruned to ratio {self.masks.pruning_ratio:.2f}")

    @property
    def cost(self) -> CostModel:
        """Parameters and MACs of the backbone for any masks."""
        assert self._cost is not None, "known once groups are"
        return self._cost

    def config(self, steps: int) -> dict[str, Any]:
        """The pruning configuration that a zoo entry's id is made of.

        Args:
            steps: the run's optimizer steps.
        """
        return {
            "criterion": self.criterion,
            "pruning_ratio": self.pruning_ratio,
            "ratio_of": self.ratio_of,
            "rounds": self.rounds,
            "warmup_steps": self.warmup_steps,
            "steps_per_round": self.steps_per_round or self._default_steps_per_round(steps),
            "steps": steps,
            "scope": self.scope,
            "floor": self.floor,
            "power": self.power,
            "seed": self.seed,
        }

    # Before any work --------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._reset()
        refuse_what_cannot_work(trainer)
        if sum(isinstance(callback, MVPCallback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError(
                "Expected one MVPCallback in the Trainer, but got several: they would undo each other's masks."
            )
        self._module = pl_module
        backbone = self._backbone(pl_module)
        self._example = self._first_example(pl_module)
        if self._example is not None:
            self._bind(pl_module, backbone, self._example)
        elif self.head_name is not None:
            resolve_module(pl_module, self.head_name, "head")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        backbone = self._backbone(pl_module)
        steps = self._planned_steps(trainer)
        per_round = self.steps_per_round or self._default_steps_per_round(steps)
        self.schedule = Schedule(self.pruning_ratio, self.rounds, per_round, self.warmup_steps, self.power)
        if steps < self.schedule.last_step:
            raise ValueError(
                f"Expected a run of at least {self.schedule.last_step} optimizer steps: `warmup_steps`="
                f"{self.warmup_steps} + `rounds`={self.rounds} × `steps_per_round`={per_round}, but the Trainer will "
                f"do {steps:.0f}. Raise max_steps or max_epochs, or prune in fewer or shorter rounds."
            )
        if self.theta0 is None:  # a resumed run has it from its checkpoint
            self.theta0 = {name: tensor.detach().cpu().clone() for name, tensor in _own_state(backbone).items()}
        if self.zoo is not None:
            assert self.task is not None
            zoo, entry = Path(self.zoo), entry_id(self.task.name, self.config(int(steps)))
            if (zoo / "zoo.json").exists() and entry in ModelZoo(zoo).names:
                raise FileExistsError(
                    f"The zoo {zoo} already has an entry {entry}: the same task pruned with the same configuration. "
                    "Nothing is overwritten; remove it with ModelZoo.remove, or change `seed`."
                )
        if self._groups is None:
            self._hook = backbone.register_forward_pre_hook(self._see_first_input)
        else:
            self._after_binding(pl_module)

    def _see_first_input(self, backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._example = first_tensor(inputs[0])[:2].detach().cpu().clone()
        assert self._hook is not None
        self._hook.remove()

    def _after_binding(self, pl_module: L.LightningModule) -> None:
        if self._masks is None:
            self._masks = Masks.full(self.groups)
        if self.zoo is not None:
            assert self.theta0 is not None
            open_zoo(Path(self.zoo), self._backbone(pl_module), self.theta0, self.groups)
        self._find_dead(pl_module)

    def _bind(self, pl_module: L.LightningModule, backbone: nn.Module, example: Tensor) -> None:
        """Find the groups and refuse what can't be pruned."""
        if self.head_name is not None:
            head = resolve_module(pl_module, self.head_name, "head")
            check_head(pl_module, backbone, head, example, len(self.task.classes) if self.task else None)
        self._groups = self._select(backbone, example)
        parameters = dict(backbone.named_parameters())
        for group in self._groups:
            for member in group.members:
                if member.gate and not parameters[member.tensor].requires_grad:
                    raise ValueError(
                        f"Expected the units of group `{group.name}` to be trainable, but `{member.tensor}` is "
                        "frozen. Unfreeze the backbone before fit: units that don't learn can't be scored."
                    )
        self._cost = CostModel(backbone, self._groups, example)
        self._scores = TaylorScores(self._groups)

    def _select(self, backbone: nn.Module, example: Tensor) -> Groups:
        groups = find_groups(backbone, example)
        feature_group = groups.feature_group
        if feature_group is not None and self.head_name is None:
            rank_zero_warn(
                f"Group `{feature_group.name}` is the backbone's output and stays whole, because `head` is not given "
                "and nobody knows who reads it. Name the linear layer that follows: MVPCallback(head=...)."
            )
            groups = groups.select(exclude=[feature_group.name])
        if len(groups) == 0:
            raise ValueError(f"Expected a backbone with prunable units, but found none. {' '.join(groups.skipped)}")
        return groups

    def _backbone(self, module: nn.Module) -> nn.Module:
        return resolve_module(module, self.backbone_name, "backbone")

    def _first_example(self, module: L.LightningModule) -> Tensor | None:
        example = self._example if self._example is not None else module.example_input_array
        return None if example is None else first_tensor(example).detach().cpu()

    def _default_steps_per_round(self, steps: float) -> int:
        if steps == float("inf"):
            raise ValueError(
                "Expected argument `steps_per_round` to be given, but got None, and the Trainer's run has no known "
                "length. Give it, or set max_steps or max_epochs."
            )
        return max(1, int(SHARE_OF_STEPS_FOR_ROUNDS * (steps - self.warmup_steps) / self.rounds))

    def _planned_steps(self, trainer: L.Trainer) -> float:
        steps = float(trainer.estimated_stepping_batches)
        if steps == float("inf") and self.zoo is not None:
            raise ValueError("Expected max_steps or max_epochs to be set with `zoo`: an entry's id says its steps.")
        return steps

    # While it trains --------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        backbone = self._backbone(pl_module)
        if self._groups is None:
            assert self._example is not None, "the backbone ran, so its input was seen"
            self._bind(pl_module, backbone, self._example)
            self._after_binding(pl_module)
        parameters = dict(backbone.named_parameters())
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in owned for parameter in parameters.values()):
            return
        self._stepped = True
        assert self._scores is not None
        if self.criterion == "taylor" and not self.finished and self.step >= self.warmup_steps:
            self._scores.update(parameters, {name: parameter.grad for name, parameter in parameters.items()})
        zero_entries(
            {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}, self._dead
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        require_finite(outputs, self.step + 1)
        if not self._stepped:  # gradients are still being accumulated
            return
        self._stepped = False
        self.step += 1
        assert self.schedule is not None
        round_ = self.schedule.round_at(self.step)
        if round_ is not None:
            self._do_round(trainer, pl_module, round_)
        self._zero_removed(pl_module)
        self._log(pl_module)

    def _do_round(self, trainer: L.Trainer, pl_module: L.LightningModule, round_: int) -> None:
        assert self.schedule is not None and self._scores is not None
        scores = self._current_scores(pl_module, round_)
        for name, score in normalised(scores, self.masks).items():
            # A unit keeps the score it had in the last round that it took part in.
            previous = self.importance.get(name, torch.zeros_like(score))
            self.importance[name] = torch.where(self.masks[name], score, previous).float()
        self._masks = choose_masks(
            scores,
            self.masks,
            self.schedule.kept_fraction(round_),
            scope=self.scope,
            ratio_of=self.ratio_of,
            cost=self.cost,
            floor=self.floor,
        )
        require_equal_on_all_ranks(trainer, self._masks, round_)
        self.round = round_
        self._scores.reset()
        self._find_dead(pl_module)
        self._zero_optimizer_state(trainer, pl_module)

    def _current_scores(self, pl_module: L.LightningModule, round_: int) -> Scores:
        if self.criterion == "taylor":
            assert self._scores is not None
            return self._scores.means()
        if self.criterion == "magnitude":
            return magnitude_importance(self._backbone(pl_module).state_dict(), self.groups)
        return random_importance(self.groups, self.seed * 1_000_003 + round_)

    def _find_dead(self, pl_module: L.LightningModule) -> None:
        device = next(self._backbone(pl_module).parameters()).device
        self._dead = dead_entries(self.groups, self.masks, device)

    def _zero_removed(self, pl_module: L.LightningModule) -> None:
        """Weight decay and momentum may move what was zero: zero it after every step."""
        zero_entries(dict(self._backbone(pl_module).named_parameters()), self._dead)

    def _zero_optimizer_state(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, parameter in self._backbone(pl_module).named_parameters():
            for optimizer in trainer.optimizers:
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        zero_entries({name: value}, {name: self._dead.get(name, [])})

    def _log(self, pl_module: L.LightningModule) -> None:
        units = sum(self.groups.sizes.values())
        pl_module.log("mvp/round", float(self.round), prog_bar=True)
        pl_module.log("mvp/kept_units", sum(self.masks.kept.values()) / units, prog_bar=True)
        pl_module.log_dict(self._cost_of(self.masks))

    def _cost_of(self, masks: Masks) -> dict[str, float]:
        # Costs change at rounds only.
        if getattr(self, "_costed", (None, {}))[0] is not masks:
            full = Masks.full(self.groups)
            self._costed = (
                masks,
                {
                    "mvp/kept_params": self.cost.parameters(masks) / self.cost.parameters(full),
                    "mvp/kept_macs": self.cost.macs(masks) / self.cost.macs(full),
                },
            )
        return self._costed[1]

    # After ------------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.finished and trainer.progress_bar_callback is not None:
            rich.print(self.table())
        if self.zoo is None:
            return
        if not self.finished:
            rank_zero_warn(f"Nothing was added to the zoo: {self.round} of {self.rounds} rounds had happened.")
            return
        if trainer.is_global_zero:
            assert self.task is not None and self.theta0 is not None
            backbone = self._backbone(pl_module)
            head_name = self.head_name
            inner = classifier_name(backbone)
            if head_name is None and inner is not None:
                head_name = f"{self.backbone_name}.{inner}"
            head = None if head_name is None else resolve_module(pl_module, head_name, "head")
            write_to_zoo(
                Path(self.zoo),
                trainer=trainer,
                backbone=backbone,
                head=head if isinstance(head, nn.Linear) else None,
                groups=self.groups,
                masks=self.masks,
                importance=self.importance,
                theta0=self.theta0,
                task=self.task,
                config=self.config(int(self._planned_steps(trainer))),
                info={
                    "steps": self.step,
                    "seed": self.seed,
                    "kept": {"units": 1 - self.masks.pruning_ratio, **self._cost_of(self.masks)},
                },
            )
        trainer.strategy.barrier("lightning_mvp zoo entry written")

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "round": self.round,
            "masks": {} if self._masks is None else {name: mask.clone() for name, mask in self._masks.items()},
            "importance": dict(self.importance),
            "sums": {} if self._scores is None else {name: value.cpu() for name, value in self._scores.sums.items()},
            "count": 0.0 if self._scores is None else float(self._scores.count),
            "theta0": self.theta0 or {},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not state_dict["masks"]:
            return
        if self._groups is None:
            raise RuntimeError(
                "Resuming needs the groups of units before the first batch: give MVPCallback(example_input=...) or "
                "set example_input_array on the module."
            )
        assert self._scores is not None
        self.step, self.round = state_dict["step"], state_dict["round"]
        self._masks = Masks(state_dict["masks"])
        self.importance = dict(state_dict["importance"])
        self._scores.sums = dict(state_dict["sums"])
        self._scores.count = torch.tensor(float(state_dict["count"]))
        self.theta0 = dict(state_dict["theta0"])


def _own_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's state without the timm classifier that may sit inside it."""
    classifier = classifier_name(backbone)
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if classifier is None or not name.startswith(f"{classifier}.")
    }
