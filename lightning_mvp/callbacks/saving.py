"""The groups of a run, what a checkpoint keeps of its pruning, and how it goes on from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor, nn
from typing_extensions import override

from lightning_mvp.callbacks.fit_prototypes import MakesPrototypes
from lightning_mvp.callbacks.resolve import check_head
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo.new_entry import ZooTarget


class SavesPruning(MakesPrototypes):
    """The part of :class:`~lightning_mvp.callbacks.mvp.MVPCallback` that finds the groups, and saves and restores."""

    task: TaskFacts | None
    zoo: ZooTarget | None
    _peak_rate: float
    _fitting: bool

    def _bind(self, pl_module: L.LightningModule, backbone: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Find the groups and refuse what can't be pruned."""
        head = self._head(pl_module)
        if head is not None:
            check_head(pl_module, backbone, head, example, len(self.task.classes) if self.task else None)
        contract = None if self.zoo is None else self.zoo.contract(pl_module.trainer)
        keep_features = self.head_name is None
        found = find_prunable(backbone, example, self.settings, keep_features=keep_features, contract=contract)
        self._pruner = Pruner(found, example, self.settings)
        if self._resumed is not None:
            self._pruner.load_state_dict(self._resumed)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint."""
        return {
            "settings": self.settings.to_dict(),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "step": self.step,
            "peak_rate": self._peak_rate,
            "pruner": self._resumed if self._pruner is None else self._pruner.state_dict(),
            "backbone": self.backbone_name,
            "head": self.head_name,
            "task": None if self.task is None else self.task.to_dict(),
            "theta0_fingerprint": None if self.zoo is None else self.zoo.theta0_fingerprint,
            "training": dict(self._known),
            "prototypes": None if self._prototypes is None else self._prototypes.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Called after :meth:`setup`, when the weights of a checkpoint have been loaded."""
        if not self._fitting:  # validate and test load checkpoints, too
            return
        if self._prototypes is not None and state_dict.get("prototypes") is not None:
            self._prototypes.load_state_dict(state_dict["prototypes"])
        if self._pruner is not None:  # a module that resumes may have rebuilt itself at the checkpoint's widths
            assert self._module is not None
            example = self._first_example(self._module)
            assert example is not None, "groups were found with it"
            self._bind(self._module, self._backbone(self._module), example)
        if not state_dict["step"]:  # nothing to go on from; the learning-rate finder saves and restores such a state
            return
        self.settings.require_same(state_dict["settings"])
        self.schedule = Schedule(**state_dict["schedule"])
        self.step, self._peak_rate = state_dict["step"], state_dict["peak_rate"]
        if self.zoo is not None:
            assert self._module is not None
            self.zoo.resume(self._module.trainer, state_dict.get("theta0") or state_dict.get("theta0_fingerprint"))
        self._known = state_dict.get("training", {})  # older checkpoints are of runs whose ids have none
        self._resumed = state_dict["pruner"]
        if self._pruner is not None:
            self._pruner.load_state_dict(state_dict["pruner"])
