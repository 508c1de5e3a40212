"""What MVPCallback can tell before, during and after fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import rich
from rich.table import Table
from torch import Tensor, nn

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.inputs import as_inputs
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.callbacks.resolve import example_inputs, resolve_module
from lightning_mvp.callbacks.small_model import cut, small_model_from
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.importance import Scores
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.pruning.settings import PruningSettings, RoundPlan, entry_config, plan_rounds
from lightning_mvp.pruning.table import plan_table, pruning_table
from lightning_mvp.pruning.zeros import require_zeroed


class PruningState(L.Callback):
    """The part of :class:`~lightning_mvp.callbacks.mvp.MVPCallback` that answers questions and changes nothing."""

    settings: PruningSettings
    schedule: Schedule | None
    step: int
    backbone_name: str
    head_name: str | None
    example_input: tuple[Tensor, ...] | None
    training: Mapping[str, Any] | None
    _known: Mapping[str, Any]
    _module: L.LightningModule | None
    _pruner: Pruner | None
    _resumed: Mapping[str, Any] | None

    @staticmethod
    def beside(callback: L.Callback, trainer: L.Trainer, remedy: str = "") -> PruningState:
        """The Trainer's MVPCallback, for another callback that depends on it.

        Args:
            callback: the callback that depends on it.
            trainer: the Trainer of both.
            remedy: for the message, what else a user could do; it begins with a comma.

        Raises:
            ValueError: there is none.
        """
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, PruningState):
                return other
        raise ValueError(
            f"Expected an MVPCallback beside {type(callback).__name__}, but the Trainer has none: there is no pruning "
            f"to wait for. Add an MVPCallback to its callbacks{remedy}."
        )

    @property
    def pruner(self) -> Pruner:
        """The engine that prunes, which exists once the backbone's groups are known."""
        if self._pruner is None:
            raise RuntimeError(
                "There are no groups, masks or costs before fit; call trainer.fit(module) first. After a fit with "
                "strategy='ddp_spawn' they are in the zoo or the checkpoint only: the processes that had them are gone."
            )
        return self._pruner

    @property
    def groups(self) -> Groups:
        """The groups of units that are pruned."""
        return self.pruner.groups

    @property
    def masks(self) -> Masks:
        """The units kept so far."""
        return self.pruner.masks

    @property
    def importance(self) -> Scores:
        """Each unit's normalised score in the last round that it took part in."""
        return self.pruner.importance

    @property
    def cost(self) -> CostModel:
        """Parameters and MACs of the backbone for any masks."""
        return self.pruner.cost

    @property
    def finished(self) -> bool:
        """Whether the last round has happened."""
        return self.rounds_done == self.settings.rounds

    @property
    def rounds_done(self) -> int:
        """How many rounds have happened."""
        if self._pruner is None:  # a resumed run may know its rounds before its groups
            return 0 if self._resumed is None else self._resumed["round"]
        return self._pruner.round

    def small_model(self) -> nn.Module:
        """The pruned model, physically small, as a plain module on the CPU in eval mode.

        Returns:
            The small backbone, followed by the small head where ``head`` was given.

        Raises:
            RuntimeError: before fit.
            ValueError: other weights than those that were pruned have been loaded since.
        """
        masks = self.masks
        assert self._module is not None, "it was seen before its groups were"
        backbone = self._backbone(self._module)
        require_zeroed(backbone, self.groups, masks)
        return cut(backbone, self._head(self._module), self.groups, masks, self.pruner.example)

    @staticmethod
    def small_model_from(
        checkpoint: str | Path | Mapping[str, Any],
        module: L.LightningModule,
        *,
        example_input: Any = None,
        backbone: str | None = None,
        head: str | None = None,
    ) -> nn.Module:
        """What :meth:`small_model` gives after fit, from a checkpoint of the run, in any process.

        Args:
            checkpoint: a checkpoint that was written after the last pruning round: a file, which is loaded with
                ``weights_only=True``, or its content.
            module: a new module, made as the one that was trained was. The checkpoint's weights are loaded into it.
            example_input: a batch of images or its shape; default: the shape in the checkpoint.
            backbone: dotted name of the backbone; default: the run's. Needed for older checkpoints, which don't say it.
            head: dotted name of the linear layer that follows the backbone; default: the run's. Needed for older
                checkpoints, which don't say it.

        Returns:
            The small backbone, followed by the small head if there is one, on the CPU in eval mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such checkpoint, or the module isn't made as the one that was trained.

        Example:
            >>> PruningState.small_model_from({"state_dict": {}}, L.LightningModule())
            Traceback (most recent call last):
            ...
            ValueError: Expected a checkpoint of a run with MVPCallback, but the checkpoint has no state of one. ...
        """
        return small_model_from(checkpoint, module, example_input, backbone, head)

    def preview(
        self, module: L.LightningModule, example_input: Any = None, steps: int | None = None
    ) -> list[RoundPlan]:
        """What each round will leave, before any training; also printed as a table.

        Args:
            module: the LightningModule.
            example_input: a batch of images; default as in fit.
            steps: the run's optimizer steps, by which rounds are placed where ``steps_per_round`` is None.

        Returns:
            A plan for each round. With global scope its widths are None, because they depend on scores.
        """
        example = self._first_example(module) if example_input is None else as_inputs(example_input)
        if example is None:
            raise ValueError("Expected argument `example_input` to be a batch of images, but got None.")
        found = find_prunable(self._backbone(module), example, self.settings, keep_features=self.head_name is None)
        plans = plan_rounds(self.settings, found.groups, found.cost, steps)
        rich.print(plan_table(plans, self.settings.ratio_of, found.groups, found.cost))
        return plans

    def table(self) -> Table:
        """Units, parameters and MACs before and after, for ``rich.print``."""
        return pruning_table(self.groups, self.masks, self.cost)

    def config(self, steps: int) -> dict[str, Any]:
        """The pruning configuration that a zoo entry's id is made of.

        Where ``training`` was not given, it has what is known of the Trainer once a fit with ``zoo`` has begun.

        Args:
            steps: the run's optimizer steps.
        """
        return entry_config(self.settings, steps, self._known if self.training is None else self.training)

    def _head(self, module: nn.Module) -> nn.Module | None:
        return None if self.head_name is None else resolve_module(module, self.head_name, "head")

    def _backbone(self, module: nn.Module) -> nn.Module:
        return resolve_module(module, self.backbone_name, "backbone")

    def _first_example(self, module: L.LightningModule) -> tuple[Tensor, ...] | None:
        return example_inputs(self.example_input, module)
