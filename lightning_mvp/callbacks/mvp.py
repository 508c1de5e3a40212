"""Iterative pruning inside anybody's Trainer, and the zoo entry that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_mvp.agreement import close_process_group_at_exit, on_rank_zero, require_equal_on_all_ranks
from lightning_mvp.backbones.inputs import as_inputs
from lightning_mvp.backbones.masks import apply_masks
from lightning_mvp.callbacks.averaging import holds_average, restart_averages
from lightning_mvp.callbacks.companions import COMPANIONS, bring_companions
from lightning_mvp.callbacks.finite_loss import loss_watches
from lightning_mvp.callbacks.fit_prototypes import FitPrototypes, require_loader
from lightning_mvp.callbacks.guards import (
    loaders_have_state,
    refuse_hidden_input,
    refuse_lossy_sync_batch_norm,
    refuse_what_cannot_work,
    warn_of_dead_units,
    warn_of_forgetful_loaders,
    warn_of_guessed_steps,
    warn_of_missing_rounds,
)
from lightning_mvp.callbacks.known_training import known_training
from lightning_mvp.callbacks.optimizers import find_optimizer, planned_steps, require_owned
from lightning_mvp.callbacks.progress import log_progress, say
from lightning_mvp.callbacks.random_state import KeepsRandomState
from lightning_mvp.callbacks.saving import SavesPruning
from lightning_mvp.callbacks.told_loggers import draw_round, log_settings, require_figures
from lightning_mvp.callbacks.zoo_writer import write_entry_of_fit
from lightning_mvp.lightning_internals import require_lightning
from lightning_mvp.pruning.choose import RatioOf, Scope
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.schedule import Schedule, require_time_for, warn_of_low_rate
from lightning_mvp.pruning.settings import CriterionChoice, PruningSettings
from lightning_mvp.pruning.words import plan_words, round_words
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo.entry_file import Storage
from lightning_mvp.zoo.new_entry import ZooTarget


class MVPCallback(SavesPruning, KeepsRandomState):
    """Prunes a LightningModule's backbone in rounds while it trains, and adds the result to a zoo.

    Scores are taken from gradients that exist anyway, in ``on_before_optimizer_step``, where they are averaged over
    ranks and unscaled. During fit removed units are only zeroed; :meth:`small_model` cuts them out afterwards. The
    callback never stops training: what follows the last round is fine-tuning.

    Args:
        criterion: ``"taylor"``, ``"magnitude"``, ``"random"`` (the control), or one of your own: an object of a
            subclass of :class:`~lightning_mvp.pruning.criteria.Criterion`, or ``{"_target_": "package.Class", ...}``.
        pruning_ratio: the fraction removed in the end, in (0, 1).
        ratio_of: what ``pruning_ratio`` is a fraction of: ``"units"``, ``"params"`` or ``"macs"``.
        rounds: how many times units are removed.
        warmup_steps: optimizer steps before the first round's steps.
        steps_per_round: optimizer steps before each round; default: 60 % of the run's steps over the rounds.
        scope: ``"layer"``: every group loses the same fraction; ``"global"``: one ranking of normalised scores.
        backbone: dotted name of the backbone in the LightningModule.
        head: dotted name of the linear layer that follows the backbone. Without it (and without a timm classifier
            inside the backbone) units that are the backbone's output stay, since nobody knows who reads them.
        example_input: a batch of images or its shape, or a tuple for a backbone that takes several inputs; default:
            the first of ``module.example_input_array``, else what the backbone first gets.
        task: facts of the task; required with ``zoo``.
        zoo: folder of the zoo to which the pruned model is added when fit ends.
        floor: the least number of units a group keeps.
        power: of the schedule's curve; above 1 the first rounds remove less.
        seed: of random scores; part of the zoo entry's id.
        round_to: round the channels left in each group up to a multiple of this, such as 8; never whole heads.
        include: which groups to prune: patterns of their names, or kinds (``"conv"``, ``"residual"``, ``"mlp"``,
            ``"heads"``); None: all.
        exclude: which groups to leave whole: patterns or kinds as for ``include``; ``"residual"`` spares the residual
            stages.
        training: what else tells this run from others (learning rate, batch size, ...; plain JSON): part of the zoo
            entry's id and its config, so that entries of other trainings are others. None: what the Trainer is known
            to have, by :func:`~lightning_mvp.callbacks.known_training.known_training`; ``{}``: nothing.
        prototype_loader: images as the backbone takes them, or raw uint8 ones, with class indices, for the entry's
            prototypes, by which it is found in a large zoo; default: a `TaskDataModule`'s, else the first that the
            backbone is given in training.
        storage: how the zoo keeps the entry: ``"float32"``, or ``"bfloat16"`` in half the bytes.
        companions: classes of callbacks that come along unless the Trainer has one of that class: ``FiniteLoss`` stops
            at a loss that is not finite, ``TimeLimit`` checks ``max_time``, ``Interrupt`` saves at Ctrl-C,
            ``RoundInBar`` names the round in the progress bar.
        log_figures: whether loggers that take figures (TensorBoard, Weights & Biases, MLflow) get, after each round,
            the kept fraction of each group as a chart and the masks as an image. Every logger gets the settings.
        overwrite: whether an entry of the same id is replaced when fit ends, instead of being refused at its start.

    Attributes:
        info: what you put here until fit ends (accuracy, seconds, ...; plain JSON) is kept with the zoo entry.

    Raises:
        ValueError: an argument out of its range, at once; what can't be seen before (no such submodule, a head that
            doesn't fit, frozen units, a schedule longer than the run, an entry that is already in the zoo, a foreign
            zoo), at the start of fit, before any step.

    Example:
        >>> callback = MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=5)
        >>> callback.settings.pruning_ratio
        0.5
        >>> MVPCallback(pruning_ratio=1.5)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `pruning_ratio` to be a float in (0, 1), but got 1.5. ...
    """

    def __init__(
        self,
        criterion: CriterionChoice = "taylor",
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
        round_to: int = 1,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        training: Mapping[str, Any] | None = None,
        storage: Storage = "float32",
        companions: Sequence[type[L.Callback]] = COMPANIONS,
        prototype_loader: Iterable[Any] | None = None,
        overwrite: bool = False,
        log_figures: bool = False,
    ) -> None:
        self.settings = PruningSettings.among(locals())
        self._fitting, self.companions, self.training = False, tuple(companions), training
        self.info: dict[str, Any] = {}
        if zoo is not None and task is None:
            raise ValueError(
                "Expected argument `task` to be given with `zoo`, but got None. A zoo entry says what it was pruned "
                "for: pass TaskFacts(name, classes, input_size, mean, std)."
            )
        self.backbone_name, self.head_name = backbone, head
        self.example_input = None if example_input is None else as_inputs(example_input)
        self.task, self.log_figures = task, log_figures
        self.zoo = None if zoo is None or task is None else ZooTarget(Path(zoo), task, storage, overwrite)
        self.prototype_loader = require_loader(prototype_loader)
        self._reset()

    def _reset(self) -> None:
        self.step = 0
        self.schedule: Schedule | None = None
        self._module: L.LightningModule | None = None
        self._pruner: Pruner | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._random_states = None
        self._example: tuple[Tensor, ...] | None = None
        self._hook: RemovableHandle | None = None
        self._prototypes = None if self.zoo is None else FitPrototypes(self.zoo, self.prototype_loader)
        self._pending = 0  # optimizer steps in the present batch
        self._steps = float("inf")  # of the run
        self._logged = False
        self._known: Mapping[str, Any] = {}
        self._step_of_round = 0  # the step after which the last round happened
        self._dev_run = False
        self._rate = self._peak_rate = 0.0

    # Before any work --------------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called first, before checkpoints are loaded: refuses what is known not to work, and brings companions."""
        require_lightning(trainer)
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        self._reset()
        if self.zoo is not None:
            self.zoo.forget()
        self._dev_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if trainer.world_size > 1:
            close_process_group_at_exit()
        refuse_what_cannot_work(trainer)
        if self.zoo is not None or trainer.checkpoint_callbacks:
            self.settings.to_dict()  # a criterion that can't be stored is refused now, not at the first checkpoint
        bring_companions(trainer, self, self.companions)
        self._module = pl_module
        if not is_overridden("configure_model", pl_module):  # else the backbone may not be there yet
            self._prepare(trainer, pl_module)
            if self.zoo is not None:  # a run that goes on may begin with its θ⁰; the checkpoint's weights come later
                self.zoo.capture(trainer, self._backbone(pl_module))

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called when optimizers exist and a checkpoint's state is loaded: refuses the rest, before any step."""
        if is_overridden("configure_model", pl_module):
            self._prepare(trainer, pl_module)
        backbone = self._backbone(pl_module)
        self._optimizer = find_optimizer(trainer, backbone)
        self._steps = steps = planned_steps(trainer)
        if self.schedule is None:  # a resumed run goes on with its checkpoint's
            self.schedule = self.settings.schedule(steps)
        if not pl_module.automatic_optimization:
            warn_of_guessed_steps(self.schedule, steps)
        elif not self._dev_run:
            require_time_for(self.schedule, steps)
        if self.zoo is not None and not self._dev_run:
            if self._resumed is None:
                self.zoo.capture(trainer, backbone)
            if steps == float("inf"):
                raise ValueError("Expected max_steps or max_epochs to be set with `zoo`: an entry's id says its steps.")
            if self.training is None and self._resumed is None:  # a run that goes on knows it from its checkpoint
                self._known = known_training(trainer, self._optimizer)
            config = {**self.config(int(steps)), "steps_per_round": self.schedule.steps_per_round}
            self.zoo.reserve(trainer, config)
        if self._pruner is None:
            refuse_hidden_input(pl_module)
            self._hook = backbone.register_forward_pre_hook(self._see_first_input)
        else:
            self._begin(trainer, backbone)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what can't be pruned, as far as it is known already."""
        backbone, example = self._backbone(pl_module), self._first_example(pl_module)
        refuse_lossy_sync_batch_norm(trainer, backbone)
        self._head(pl_module)
        if example is not None:
            self._bind(pl_module, backbone, example)

    def _see_first_input(self, backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._example = tuple(tensor[:2].detach().cpu().clone() for tensor in as_inputs(inputs))
        assert self._hook is not None
        self._hook.remove()

    def _begin(self, trainer: L.Trainer, backbone: nn.Module) -> None:
        """What is left to do once groups and optimizer are known."""
        assert self._optimizer is not None
        require_owned(self._optimizer, backbone, self.groups)
        if self._resumed is None:
            warn_of_dead_units(backbone, self.groups)
        apply_masks(backbone, self.groups, self.masks)  # an interrupted round may have left some to zero
        self._tell_module()
        if self._dev_run:
            return
        if self.zoo is not None:
            self.zoo.open(trainer, backbone, self.pruner.prunable.every)
        assert self.schedule is not None, "it is made before anything else"
        found, of = self.pruner.prunable, self.settings.ratio_of
        plan = self.schedule, self._steps, of, len(found.groups), found.whole, found.without_units, self.rounds_done
        say(trainer, self.task, plan_words(*plan))
        log_settings(trainer, self.pruner, self.schedule)
        if self.log_figures:
            require_figures(trainer.loggers)

    # While it trains --------------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the first training step, when the loaders are known."""
        if self._resumed is not None and not loaders_have_state(trainer):
            warn_of_forgetful_loaders()
        super().on_train_start(trainer, pl_module)

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called once the gradients of a step are complete, before they are clipped: takes scores from them."""
        backbone = self._backbone(pl_module)
        if self._optimizer not in trainer.optimizers:  # somebody has made new ones
            self._optimizer = find_optimizer(trainer, backbone)
            if self._pruner is not None:
                require_owned(self._optimizer, backbone, self.groups)
        if optimizer is not self._optimizer:
            return
        if self._pending and pl_module.automatic_optimization:  # an optimizer that takes several looks at one batch
            self.pruner.zero_gradients(backbone)
            return
        if self._pruner is None:
            assert self._example is not None, "the backbone ran, so its input was seen"
            self._bind(pl_module, backbone, self._example)
            self._begin(trainer, backbone)
        # A rate that is a tensor may be on a GPU, which would have to be waited for.
        self._rate = max([g["lr"] for g in optimizer.param_groups if isinstance(g["lr"], (int, float))], default=0.0)
        self._peak_rate = max(self._peak_rate, self._rate)
        if self.step + self._pending >= self.settings.warmup_steps or self._dev_run:
            self.pruner.observe(backbone)
        self.pruner.zero_gradients(backbone)
        self._pending += 1

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch: after an optimizer step removed units are zeroed, in its round more."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._pending:  # gradients are still being accumulated
            return
        assert self.schedule is not None
        self._pending, self.step = 0, self.step + self._pending
        due = self.settings.rounds if self._dev_run else self.schedule.rounds_due(self.step)
        if due > self.pruner.round and self._prune(trainer, pl_module, due):
            self._logged = False
            say(trainer, self.task, round_words(due, self.settings.rounds, self.step, self.pruner.kept))
            if self.log_figures:
                draw_round(trainer, self.pruner)
        else:
            self.pruner.zero_removed(self._backbone(pl_module))
        if not self._logged:
            self._logged = True
            log_progress(trainer, pl_module, self.pruner.round, self.pruner.kept)

    def _prune(self, trainer: L.Trainer, pl_module: L.LightningModule, round_: int) -> bool:
        """Do one round, the same on all ranks. Returns whether it was done: it waits while units can't be scored."""
        assert self.schedule is not None
        assert self._optimizer is not None
        backbone, ready = self._backbone(pl_module), self.pruner.criterion.ready()
        if ready:
            for watch in loss_watches(trainer):  # a loss on a GPU is asked for now and then only
                watch.check()
            self.pruner.prune(backbone, round_, self.schedule.kept_fraction(round_))
        require_equal_on_all_ranks(trainer, self.masks.fingerprint if ready else "the round waits", round_)
        if ready:
            self._step_of_round = self.step
            for watch in loss_watches(trainer):
                watch.after_round(round_, trainer.global_step)
            self.pruner.zero_optimizer_state(backbone, self._optimizer)
            restart_averages(trainer, pl_module)
            self._tell_module()
            if self.finished:
                warn_of_low_rate(self._rate, self._peak_rate)
        return ready

    def _tell_module(self) -> None:
        """Tell a module that asks for it, such as one that mimics a teacher, which units are left."""
        on_units_kept = getattr(self._module, "on_units_kept", None)
        if callable(on_units_kept):
            on_units_kept(self.groups, self.masks)

    # After ------------------------------------------------------------------------------------------------------------

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called when fit ends without an error, with the model on the CPU: adds the zoo entry."""
        if not self.finished:
            scored = self._pruner is None or self.step == self._step_of_round or self._pruner.criterion.ready()
            warn_of_missing_rounds(self.rounds_done, self.settings.rounds, self.step, self.zoo is not None, scored)
            return
        if holds_average(trainer, pl_module):  # whose callback may take it before removed units are zeroed
            apply_masks(self._backbone(pl_module), self.groups, self.masks)
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            rich.print(self.table())
        if self.zoo is not None and not self._dev_run:
            zoo, backbone, head = self.zoo, self._backbone(pl_module), self._head(pl_module)
            made = self._prototypes
            assert made is not None, "there is a zoo"
            info = {"steps": self.step, "seed": self.settings.seed, **self.info}
            on_rank_zero(trainer, lambda: write_entry_of_fit(zoo, trainer, self.pruner, backbone, head, made, info))
