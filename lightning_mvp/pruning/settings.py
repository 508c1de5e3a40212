"""The settings of pruning, checked when they are made, and the rounds that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks, require_round_to, unit_multiples
from lightning_mvp.checks import require_whole
from lightning_mvp.pruning.choose import RatioOf, Scope, choose_masks, require_choice
from lightning_mvp.pruning.criteria import CRITERIA, Criterion
from lightning_mvp.pruning.schedule import Schedule

CriterionChoice: TypeAlias = "str | Criterion | Mapping[str, Any]"

# The first zoos and checkpoints were made before these settings existed. With these values pruning is as it was then,
# and they are not stored, so that ids stay as they were.
DEFAULTS_NOT_STORED: dict[str, Any] = {"round_to": 1, "include": None, "exclude": None}

# After the last round there are steps of fine-tuning, which the model needs to recover.
SHARE_OF_STEPS_FOR_ROUNDS = 0.6


@dataclass(frozen=True)
class PruningSettings:
    """How a backbone is pruned; the arguments are those of :class:`~lightning_mvp.callbacks.mvp.MVPCallback`.

    Raises:
        ValueError: an argument, which is named, is out of its range.

    Example:
        >>> PruningSettings(pruning_ratio=0.75, rounds=2).schedule(steps=100).step_of(2)
        60
    """

    criterion: CriterionChoice = "taylor"
    pruning_ratio: float = 0.8
    ratio_of: RatioOf = "units"
    rounds: int = 8
    warmup_steps: int = 0
    steps_per_round: int | None = None
    scope: Scope = "layer"
    floor: int = 1
    power: float = 1.0
    seed: int = 0
    round_to: int = 1
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> PruningSettings:
        """The settings among the arguments of a function, which may have others.

        Args:
            arguments: such as ``locals()`` at the beginning of a function that has an argument for each setting.

        Example:
            >>> arguments = {**vars(PruningSettings()), "rounds": 2, "zoo": "a_zoo"}
            >>> PruningSettings.among(arguments).rounds
            2
        """
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        CRITERIA.resolve(self.criterion)
        require_choice("ratio_of", self.ratio_of, RatioOf)
        require_choice("scope", self.scope, Scope)
        require_whole(self.floor, "argument `floor`")
        require_round_to(self.round_to)
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if patterns is not None:  # one pattern or several; kept as a plain list, as JSON and checkpoints return it
                object.__setattr__(self, name, [patterns] if isinstance(patterns, str) else list(patterns))
        self._schedule(1 if self.steps_per_round is None else self.steps_per_round)

    def _schedule(self, steps_per_round: int) -> Schedule:
        return Schedule(self.pruning_ratio, self.rounds, steps_per_round, self.warmup_steps, self.power)

    def schedule(self, steps: float) -> Schedule:
        """The rounds of a run of so many optimizer steps, ``inf`` where their number is not known.

        Raises:
            ValueError: neither ``steps_per_round`` nor the run's length is known.
        """
        if self.steps_per_round is not None:
            return self._schedule(self.steps_per_round)
        if steps == float("inf"):
            raise ValueError(
                "Expected argument `steps_per_round` to be given, but got None, and the Trainer's run has no known "
                "length. Give it, or set max_steps or max_epochs."
            )
        return self._schedule(max(1, int(SHARE_OF_STEPS_FOR_ROUNDS * (steps - self.warmup_steps) / self.rounds)))

    def config(self, steps: int) -> dict[str, Any]:
        """The settings that are part of a zoo entry's id, for a run of so many optimizer steps."""
        return {**self.to_dict(), "steps_per_round": self.schedule(steps).steps_per_round, "steps": steps}

    def _stored(self) -> dict[str, Any]:
        criterion = CRITERIA.stored(self.criterion)
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"criterion": criterion}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types. A setting that older versions do not have is left out at its default.

        Raises:
            ValueError: a criterion that other processes can't make again from what is stored of it.
        """
        return {name: value for name, value in self._stored().items() if DEFAULTS_NOT_STORED.get(name, ...) != value}

    def require_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings than a checkpoint has.

        Args:
            saved: what :meth:`to_dict` returned.

        Raises:
            ValueError: they differ; the message lists how.
        """
        before, own = {**DEFAULTS_NOT_STORED, **saved}, self._stored()
        differing = [
            f"{name}={before.get(name)!r}, not {own.get(name)!r}"
            for name in before | own
            if before.get(name) != own.get(name)
        ]
        if differing:
            raise ValueError(
                f"Expected the settings of the run that is resumed, but it had {', '.join(differing)}. Pass the same "
                "to MVPCallback, or start anew from the weights alone."
            )

    def choose(
        self, scores: Mapping[str, Tensor], masks: Masks, kept_fraction: float, groups: Groups, cost: CostModel
    ) -> Masks:
        """One decision: :func:`~lightning_mvp.pruning.choose.choose_masks` with these settings."""
        return choose_masks(
            scores,
            masks,
            kept_fraction,
            scope=self.scope,
            ratio_of=self.ratio_of,
            cost=cost,
            floor=self.floor,
            multiples=unit_multiples(groups, self.round_to) if self.round_to > 1 else None,
        )


def entry_config(settings: PruningSettings, steps: int, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration from which a pruned entry's id is made.

    Args:
        settings: how it is pruned.
        steps: the run's optimizer steps.
        training: how it is trained, as plain JSON, if that is known.
    """
    return {**settings.config(steps), **({"training": dict(training)} if training else {})}


@dataclass(frozen=True)
class RoundPlan:
    """One round of a preview; values that are not known before training are None.

    Args:
        round: its number, from 1.
        step: the optimizer steps done when it happens; None if the run's length is not known.
        kept_fraction: the fraction of units, parameters or MACs that is left after it.
        widths: the number of units left in each group; None with global scope, where they depend on scores.
        macs: multiply-accumulates left; None with global scope.
    """

    round: int
    step: int | None
    kept_fraction: float
    widths: dict[str, int] | None
    macs: int | None


def plan_rounds(settings: PruningSettings, groups: Groups, cost: CostModel, steps: int | None) -> list[RoundPlan]:
    """What each round will leave, before any training.

    Args:
        settings: how it will be pruned.
        groups: the backbone's groups.
        cost: of the same backbone and groups.
        steps: the run's optimizer steps; needed for the rounds' steps unless ``steps_per_round`` is set.
    """
    timed = steps is not None or settings.steps_per_round is not None
    schedule = settings.schedule(settings.warmup_steps if steps is None else steps)
    # With layer scope widths don't depend on which units stay.
    scores = {group.name: torch.zeros(group.size) for group in groups}
    masks, plans = Masks.full(groups), []
    for round_ in range(1, settings.rounds + 1):
        fraction, known = schedule.kept_fraction(round_), settings.scope == "layer"
        if known:
            masks = settings.choose(scores, masks, fraction, groups, cost)
        plans.append(
            RoundPlan(
                round=round_,
                step=schedule.step_of(round_) if timed else None,
                kept_fraction=fraction,
                widths=masks.kept if known else None,
                macs=cost.macs(masks) if known else None,
            )
        )
    return plans
