"""Everything that decides a comparison's results, in one plain value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from lightning_mvp.checks import require_whole
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.schedule import require_ratio
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.methods import METHODS, Trial, parse_method

TargetKind = Literal["target", "heldout"]
STAGES = ("pretrain", "zoo", "grow", "overlap", "compare", "ablate", "report")


@dataclass(frozen=True)
class StudySettings:
    """What `mvp-compare` compares, and on what.

    Args:
        data: arguments of :func:`~lightning_mvp.tasks.data.load_data`.
        split: arguments of :func:`~lightning_mvp.tasks.splits.split_tasks`.
        recipe: the backbone's recipe.
        weights: the safetensors file of θ⁰; None pre-trains a θ⁰ on the split's seen classes.
        pretrained: take timm's own weights as θ⁰.
        pretrain: ``steps``, ``batch_size``, ``learning_rate`` (None: four times that of ``optim``), ``augment`` of
            pre-training.
        pruning: arguments of :class:`~lightning_mvp.callbacks.mvp.MVPCallback` (criterion, ratio, rounds, ...).
        vote: ``neighbours``, ``similarity``, ``temperature``, ``missing``.
        optim: ``learning_rate``, ``optimizer``, ``weight_decay``, ``schedule`` of every fine-tuning and pruning run.
        steps: the optimizer steps of MVP, and of every method whose name gives no number of steps.
        source_steps: the optimizer steps of each zoo entry, rounds included.
        batch_size: of every fine-tuning and pruning run.
        augment: how the images of every fine-tuning and pruning run are augmented.
        methods: names out of :data:`~lightning_mvp.study.methods.METHODS`, each perhaps with its steps:
            ``"taylor@1000"``.
        parent: ``pruning_ratio``, ``rounds``, ``steps``, ``batch_size``, ``learning_rate`` and ``mimic`` (the weight
            with which it mimics θ⁰) of a mildly pruned model of all source classes, with which the zoo's entries begin.
            What it removes is part of ``pruning``'s ratio, so that models
            of all methods have one size. None: entries begin with θ⁰.
        tuned: method, perhaps with its steps → dotted settings that hold for it alone, for instance
            ``{"taylor@1000": {"optim.learning_rate": 0.1}}``.
        trials: name → ``method`` and dotted settings to try on validation images of the split's development tasks.
        precision: of the Trainer.
        gradient_clip: the largest gradient norm in every fine-tuning and pruning run; None for no limit.
        fewer: method → number of targets on which it is run, the first ones: ``{"dense@1000": 5}``. A method that is
            not named is run on all targets.
        superclasses: a JSON file that maps each class to its superclass, for the overlap of masks.
        begins_with: the folder of a finished study whose θ⁰ and parent this one takes instead of making its own.
        zoo_of: the folder of a finished study whose zoo and generic models this one takes, with θ⁰ and parent. The
            targets may be of another data set, class count or number of images.
        target_kind: ``"target"``, tasks over seen classes, or ``"heldout"``, over classes that nothing else has seen.
        images_per_class: the number of training images of each class of a target or development task; None takes all.
        new_images: divide each class's training images in two halves, drawn by ``seed``: θ⁰, parent, zoo and generic
            models learn from one half, targets and development tasks from the other. Else all learn from all.
        entries: how many source tasks, the first ones, get an entry of their own; None: all.
        growths: name → how a zoo grows by use from some of those entries, see
            :class:`~lightning_mvp.study.growth.Growth`.
        variants: name → ``method`` and dotted settings of a run on each target (or on the first ``targets``), as
            ``trials`` are on each development task, for instance
            ``{"grown.A@100": {"method": "grown@100", "vote.growth": "A", "vote.entries": 50}}``.
        label: what a report calls this study, where it shows several kinds.
        seed: of everything random.

    Raises:
        ValueError: a value out of its range, a method, setting or option that does not exist, or two settings that
            exclude each other.
    """

    data: dict[str, Any]
    split: dict[str, Any]
    recipe: dict[str, Any]
    weights: str | None = None
    pretrained: bool = False
    pretrain: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    vote: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    source_steps: int = 100
    batch_size: int = 32
    augment: str = "crop"
    methods: tuple[str, ...] = ("mvp", "nearest", "generic", "taylor", "dense")
    parent: dict[str, Any] | None = None
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    precision: str = "auto"
    gradient_clip: float | None = 1.0
    fewer: dict[str, int] = field(default_factory=dict)
    superclasses: str | None = None
    begins_with: str | None = None
    zoo_of: str | None = None
    target_kind: TargetKind = "target"
    images_per_class: int | None = None
    new_images: bool = False
    entries: int | None = None
    growths: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    label: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "source_steps", "batch_size"):
            require_whole(getattr(self, name), f"argument `{name}`")
        if not self.methods:
            raise ValueError("Expected argument `methods` to name at least one method, but got none.")
        for trial in (*self.measured(), *self.tried()):
            if trial.steps == 0 and (METHODS[trial.method].kind == "rounds" or trial.method == "mvp_refine"):
                raise ValueError(f"Expected {trial.method} to have steps, but got {trial.method}@0.")
            self.changed(trial.changes)
            if not re.fullmatch(r"[\w.+@-]+", trial.name) or "--" in trial.name:
                raise ValueError(
                    "Expected the name of a trial to be of letters, digits and single . + @ _ -, because a file is "
                    f"named by it, but got {trial.name!r}."
                )
        both = {trial.name for trial in self.compared()} & set(self.variants)
        if both:
            raise ValueError(f"Expected `variants` to have names of their own, but {sorted(both)} are methods, too.")
        for method in (*self.tuned, *self.fewer):
            parse_method(method, self.steps)
        require_choice("target_kind", self.target_kind, TargetKind)
        if self.zoo_of is not None and self.begins_with is not None:
            raise ValueError(
                f"Expected `zoo_of` without `begins_with`, whose θ⁰ comes with the zoo, but got {self.zoo_of!r} and "
                f"{self.begins_with!r}."
            )
        self._require_parent()
        for name in self.growths:
            self._require_growth(name)

    def _require_parent(self) -> None:
        ratio = require_ratio(self.pruning_ratio)
        if self.parent is None:
            return
        if not {"pruning_ratio", "steps"} <= set(self.parent):
            raise ValueError(f"Expected `parent` to give pruning_ratio and steps, but got {self.parent}.")
        if not require_ratio(self.parent["pruning_ratio"]) < ratio:
            raise ValueError(
                f"Expected `parent.pruning_ratio` to be below `pruning.pruning_ratio`={ratio}, of which it is a part, "
                f"but got {self.parent['pruning_ratio']}."
            )

    def _require_growth(self, name: str) -> None:
        known = {field.name for field in fields(Growth)}
        if unknown := sorted(set(self.growths[name]) - known):
            raise ValueError(
                f"Expected `growths.{name}` to have some of {', '.join(sorted(known))}, but got {unknown}."
            )
        growth = self.growth(name)
        if self.zoo_of is not None:
            return  # it grew there, from the tasks of that study
        growth.sequence(self.split["sources"])
        if growth.seeds > len(self.sources):
            raise ValueError(
                f"Expected `growths.{name}.seeds` to be at most {len(self.sources)}, the source tasks that get an "
                f"entry, but got {growth.seeds}. Raise `entries`."
            )

    @property
    def pruning_ratio(self) -> float:
        """What is removed of θ⁰ in the end, by every method."""
        return self.pruning.get("pruning_ratio", 0.8)

    @property
    def entry_ratio(self) -> float:
        r"""What a zoo entry removes of its parent, :math:`1 - (1 - r) / (1 - r_{parent})`; r where it has none."""
        if self.parent is None:
            return self.pruning_ratio
        return round(1 - (1 - self.pruning_ratio) / (1 - self.parent["pruning_ratio"]), 10)

    @property
    def home(self) -> str | None:
        """The study whose θ⁰ and parent are used; None for its own."""
        return self.zoo_of or self.begins_with

    @property
    def targets(self) -> int:
        """How many new tasks there are."""
        return self.split.get("held_out_targets" if self.target_kind == "heldout" else "targets", 0)

    def target(self, index: int) -> str:
        """The name of a new task."""
        return f"{self.target_kind}-{index:03d}"

    @property
    def zoo_steps(self) -> int:
        """Optimizer steps that the whole zoo took, its parent's included."""
        parent = 0 if self.parent is None else self.parent["steps"]
        return parent + len(self.sources) * self.source_steps

    @property
    def sources(self) -> list[str]:
        """The names of the source tasks that get an entry of their own."""
        count = self.split["sources"]
        return [f"source-{index:03d}" for index in range(count if self.entries is None else min(count, self.entries))]

    def growth(self, name: str) -> Growth:
        """How a zoo grows."""
        return Growth(**self.growths[name])

    def compared(self) -> list[Trial]:
        """The methods with their steps and what was tuned for them; names are those of the records."""
        pairs = dict.fromkeys(parse_method(method, self.steps) for method in self.methods)
        return [Trial(*pair, self.tuned_for(*pair), "{}@{}".format(*pair)) for pair in pairs]

    def tuned_for(self, method: str, steps: int) -> dict[str, Any]:
        """What was tuned for a method, and for it with so many steps."""
        return {**self.tuned.get(method, {}), **self.tuned.get(f"{method}@{steps}", {})}

    def number_of_targets(self, trial: Trial) -> int:
        """On how many targets a method is run."""
        wanted = {parse_method(name, self.steps): count for name, count in self.fewer.items()}
        most = wanted.get((trial.method, trial.steps), self.targets) if trial.targets is None else trial.targets
        return min(self.targets, most)

    def tried(self) -> list[Trial]:
        """The trials on development tasks; a method's tuned settings hold unless the trial has others."""
        return self._trials(self.trials)

    def varied(self) -> list[Trial]:
        """The variants on targets; a method's tuned settings hold unless the variant has others."""
        return self._trials(self.variants)

    def measured(self) -> list[Trial]:
        """All that is measured on test images of targets: methods, then variants."""
        return [*self.compared(), *self.varied()]

    def _trials(self, options_of: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
        trials = []
        for name, options in options_of.items():
            method, steps = parse_method(options.get("method", "mvp"), self.steps)
            own = {key: value for key, value in options.items() if key not in ("method", "targets")}
            changes = {**self.tuned_for(method, steps), **own}
            trials.append(Trial(method, steps, changes, name, options.get("targets")))
        return trials

    def changed(self, changes: Mapping[str, Any]) -> StudySettings:
        """These settings with some others, by dotted names: ``{"vote.neighbours": 3, "augment": "none"}``.

        Raises:
            ValueError: a name that is no setting of a single run.

        Example:
            >>> StudySettings({}, {}, {}, vote={"neighbours": 5}).changed({"vote.neighbours": 3}).vote
            {'neighbours': 3}
        """
        values: dict[str, Any] = {}
        for name, value in changes.items():
            section, _, key = name.partition(".")
            if section not in ("vote", "optim", "pruning") or not key:
                if name not in ("augment", "gradient_clip", "batch_size"):
                    raise ValueError(
                        "Expected a trial to change `vote.…`, `optim.…`, `pruning.…`, `augment`, `batch_size` or "
                        f"`gradient_clip`, but got {name!r}."
                    )
                values[name] = value
            else:
                values.setdefault(section, dict(getattr(self, section)))[key] = value
        return replace(self, **values, tuned={}, trials={}, variants={}) if values else self

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> StudySettings:
        """The settings that :meth:`to_dict` gave."""
        return cls(**{**settings, "methods": tuple(settings["methods"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as JSON reads them back."""
        return json.loads(json.dumps(asdict(self)))
