"""Everything that decides a comparison's results, in one plain value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lightning_mvp.pruning.schedule import require_ratio


class Label(NamedTuple):
    """What a method is called: in full in reports, in short where a terminal has 80 columns."""

    full: str
    short: str


METHODS = {
    "mvp": Label("Meta-Vote Pruning: the nearest tasks' vote, averaged weights", "Meta-Vote Pruning"),
    "nearest": Label("nearest single pruned model", "nearest model"),
    "random_vote": Label("vote of random neighbours", "random neighbours"),
    "generic": Label("θ⁰ pruned once on all source classes, one task's budget", "generic pruning"),
    "oneshot_taylor": Label("one-shot Taylor", "one-shot Taylor"),
    "oneshot_magnitude": Label("one-shot magnitude", "one-shot magnitude"),
    "taylor": Label("iterative Taylor, the same steps", "Taylor"),
    "taylor_10x": Label("iterative Taylor, 10 × the steps", "Taylor, 10 × steps"),
    "dense": Label("dense fine-tuning (not pruned)", "dense, not pruned"),
    "dense_10x": Label("dense fine-tuning, 10 × the steps", "dense, 10 × steps"),
}


@dataclass(frozen=True)
class StudySettings:
    """What `mvp-compare` compares, and on what.

    Args:
        data: arguments of :func:`~lightning_mvp.tasks.data.load_data`.
        split: arguments of :func:`~lightning_mvp.tasks.splits.split_tasks`.
        recipe: the backbone's recipe.
        weights: safetensors of θ⁰; None pre-trains one on the split's seen classes.
        pretrained: take timm's own weights instead.
        pretrain: ``steps``, ``batch_size``, ``learning_rate`` (None: four times that of ``optim``), ``augment`` of
            pre-training.
        pruning: arguments of :class:`~lightning_mvp.callbacks.mvp.MVPCallback` (criterion, ratio, rounds, ...).
        vote: ``neighbours``, ``similarity``, ``temperature``, ``missing``.
        optim: of every fine-tuning and pruning run: ``learning_rate``, ``optimizer``, ``weight_decay``, ``schedule``.
        steps: J, the optimizer steps of MVP and of every method at the same steps.
        source_steps: optimizer steps of each zoo entry, rounds included.
        batch_size: of every fine-tuning and pruning run.
        augment: of every fine-tuning and pruning run.
        methods: names out of :data:`METHODS`.
        precision: of the Trainer.
        gradient_clip: largest gradient norm in every fine-tuning and pruning run; None for no limit.
        seed: of everything random.
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
    methods: tuple[str, ...] = tuple(METHODS)
    precision: str = "auto"
    gradient_clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise ValueError(
                f"Expected argument `methods` to be names out of {', '.join(METHODS)}, but got {list(self.methods)}."
            )
        for name in ("steps", "source_steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected argument `{name}` to be an integer of at least 1, but got {value!r}.")
        require_ratio(self.pruning.get("pruning_ratio", 0.8))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as JSON reads them back."""
        return json.loads(json.dumps(asdict(self)))
