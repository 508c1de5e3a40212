"""From a trained voted model to the entry of a zoo that later votes begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.passes import Where
from lightning_mvp.pruning.importance import Scores, magnitude_importance
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.voting.class_means import task_means
from lightning_mvp.voting.vote import Ballots, vote
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.entry_file import Storage
from lightning_mvp.zoo.families import family_of
from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.new_entry import add_or_keep, entry_of
from lightning_mvp.zoo.rebuild import as_tensors, dense_backbone, entry_masks
from lightning_mvp.zoo.seen_by import as_seen_by
from lightning_mvp.zoo.waves import family_members, growth_config, next_wave
from lightning_mvp.zoo.zoo import ModelZoo


class WorseThanStartError(ValueError):
    """A model is worse on validation images than the vote it began with: it is no use to later votes."""


def add_voted(
    zoo: ModelZoo | str | Path,
    module: MetaVoteModule,
    datamodule: TaskDataModule,
    *,
    start_accuracy: float | None,
    config: Mapping[str, Any] | None = None,
    wave: int | None = None,
    info: Mapping[str, Any] | None = None,
    storage: Storage = "float32",
    folder: str | Path = ".",
    device: Where = None,
) -> str:
    """Add a trained voted model to the zoo that it was voted from: the last of three steps, see the example.

    Its masks are the vote's, its importance is the mean of its parents' with the vote's coefficients (no gradients were
    looked at, and later votes break ties by it), its prototypes are θ⁰'s, like those of any entry. Of several processes
    call it in the first only.

    Args:
        zoo: a zoo or its folder; the entries that voted must still be there.
        module: made by :meth:`MetaVoteModule.from_zoo`, or loaded from a checkpoint of one, and trained.
        datamodule: of the same task.
        start_accuracy: on the task's validation images before the first step, as
            :func:`~lightning_mvp.fitting.growing.start_accuracy` measures it; a model that is worse now is refused.
            None adds any.
        config: what the entry's id is made of, besides the task's name: all that tells one training from another. None:
            the module's optimizer settings, the number of voters, and the wave.
        wave: of the entry; None: ``config["wave"]``, else one more than any entry's of its family.
        info: anything else worth keeping, such as ``{"steps": 100}``; plain JSON.
        storage: ``"float32"``, or ``"bfloat16"`` for half the bytes.
        folder: where the entry is kept if the zoo can't be written.
        device: where images go through the models, such as ``"cuda"``, or a
            :class:`~lightning_mvp.backbones.passes.Place`, which also says the precision. None: where the module is.

    Returns:
        The name of the entry.

    Raises:
        WorseThanStartError: worse on validation images than ``start_accuracy``.
        ValueError: a module of another task or another zoo, or whose voters are gone.
        OSError: the zoo can't be written; the message says where the entry is kept.

    Example:
        >>> from lightning_mvp.fitting.growing import start_accuracy  # doctest: +SKIP
        >>> module = MetaVoteModule.from_zoo("zoo/", data)  # doctest: +SKIP
        >>> start = start_accuracy(module, data)  # doctest: +SKIP
        >>> L.Trainer(max_steps=100).fit(module, datamodule=data)  # doctest: +SKIP
        >>> add_voted("zoo/", module, data, start_accuracy=start, info={"steps": 100})  # doctest: +SKIP
    """
    zoo = zoo if isinstance(zoo, ModelZoo) else ModelZoo(zoo)
    if module.facts != datamodule.facts:
        raise ValueError(
            f"Expected argument `datamodule` to be of the module's task {module.facts.name!r}, with the same classes "
            f"and images, but got one of {datamodule.facts.name!r}."
        )
    accuracy = module.accuracy_in(datamodule, device=device)
    if start_accuracy is not None and not accuracy >= start_accuracy:
        raise WorseThanStartError(
            f"Expected the model of {module.facts.name!r} to be no worse on validation images than the vote it began "
            f"with, but it has {accuracy:.1%} where the start had {start_accuracy:.1%}. It was not added to the zoo "
            f"{zoo.path}. Train for more steps or at another learning rate, or add it anyway: start_accuracy=None "
            "here, growth.keep_worse=true for `mvp-prune`."
        )
    parents = _parents(zoo, module)
    family, members = family_members(zoo, family_of(parents[0].name, parents[0].config))
    if wave is None:
        wave = next_wave(members) if config is None else config.get("wave") or next_wave(members)
    if config is None:
        rule = {"neighbours": len(parents), "wave": wave, "training": module.training_options, **_steps(info)}
        config = growth_config(family, members, rule)
    entry = grown_entry(
        zoo, module, datamodule, parents, config, {**(info or {}), "val_accuracy": accuracy, "wave": wave}, device
    )
    add_or_keep(zoo, entry, Path(folder), storage)
    return entry.name


def _steps(info: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (info or {}).items() if name in ("steps", "seed")}


def _parents(zoo: ModelZoo, module: MetaVoteModule) -> list[ZooEntry]:
    """The zoo entries whose vote a module began with, in the order in which its report lists them."""
    names = [neighbour["name"] for neighbour in module.report["neighbours"]]
    gone = [name for name in names if name not in zoo]
    if gone:
        raise ValueError(
            f"Expected the entries that voted for this model to be in the zoo at {zoo.path}, but {', '.join(gone[:5])} "
            "is not there. Is it the zoo that the model was voted from? A voter that was removed takes its part in the "
            "model with it: vote anew."
        )
    return [zoo[name] for name in names]


def grown_entry(
    zoo: ModelZoo,
    module: MetaVoteModule,
    datamodule: TaskDataModule,
    parents: Sequence[ZooEntry],
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    device: Where = None,
) -> ZooEntry:
    """The entry of a trained voted model, not added to anything yet.

    Args:
        zoo: that of its parents.
        module: the model; its report says how the vote went.
        datamodule: of the task.
        parents: the entries that voted, in the report's order.
        config: of the entry's id.
        info: what the run came to; parents and generation are added.
        device: as in :func:`add_voted`.

    Raises:
        ValueError: the parents are not what they were when they voted.
    """
    report, facts = module.report, datamodule.facts
    dense = dense_backbone(zoo)
    groups = find_groups(dense, module.example).listed(zoo.group_sizes, str(zoo.path))
    importance = {parent.name: parent.importance for parent in parents}
    magnitude = magnitude_importance(dense.state_dict(), groups)
    masks = _voted_masks({parent.name: entry_masks(parent) for parent in parents}, report, importance, magnitude)
    coefficients = report["coefficients"]
    metrics = {name: info[name] for name in ("val_accuracy",) if name in info}
    theta0, seen_by = zoo.theta0(), as_seen_by(facts, zoo.preprocessing)
    return entry_of(
        facts,
        config,
        masks,
        mean_importance(importance, coefficients),
        {name: tensor for name, tensor in module.backbone.state_dict().items() if name in theta0},
        module.head.state_dict(),
        task_means(dense, datamodule, seen_by, device).means(),
        {
            **datamodule.data.described(),
            **info,
            "parents": [parent.name for parent in parents],
            "generation": 1 + max(member.generation for member in lineage(zoo, [parent.name for parent in parents])),
        },
        kept={
            "units": 1 - masks.pruning_ratio,
            "params": report["parameters"] / report["dense_parameters"],
            "macs": report["macs"] / report["dense_macs"],
        },
        metrics=metrics,
        seen_by=seen_by,
    )


def mean_importance(importance: Mapping[str, Mapping[str, np.ndarray]], coefficients: Mapping[str, float]) -> Scores:
    r"""What later votes break ties by: :math:`I_k = \sum_j a_j I_k^j / \sum_j a_j` over the parents that have scores.

    Args:
        importance: parent → group → ``(units,)``, or empty.
        coefficients: parent → a_j.

    Returns:
        Group → float32 ``(units,)``; empty if no parent has scores. Sums are float64 over parents sorted by name.

    Example:
        >>> mean_importance({"x": {"conv": np.array([0.0, 4.0])}, "y": {"conv": np.array([1.0, 0.0])}, "z": {}},
        ...                 {"x": 1.0, "y": 3.0, "z": 1.0})
        {'conv': tensor([0.7500, 1.0000])}
    """
    scored = [name for name in sorted(importance) if importance[name]]
    total = sum(coefficients[name] for name in scored)
    groups = importance[scored[0]] if scored else ()
    mean = {
        group: sum(coefficients[name] * importance[name][group].astype(np.float64) for name in scored) / total
        for group in groups
    }
    return as_tensors({group: np.asarray(scores, np.float32) for group, scores in mean.items()})


def _voted_masks(
    masks: Mapping[str, Masks], report: Mapping[str, Any], importance: Mapping[str, Any], magnitude: Scores
) -> Masks:
    """The masks that a report tells the fingerprint of: the same vote gives them again."""
    for ballots in Ballots.__args__:  # type: ignore[attr-defined]
        again = vote(masks, report["widths"], report["coefficients"], importance, magnitude, ballots)
        if again.fingerprint == report["masks"]:
            return again
    raise ValueError(
        f"Expected the entries {', '.join(masks)} to be those that voted for this model, but their vote is another one "
        "now: they were replaced since. Vote anew."
    )
