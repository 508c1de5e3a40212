"""A zoo that grows by use: a voted model, once it is trained, becomes an entry that later votes begin with."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.callbacks.zoo_export import (
    add_or_keep,
    entry_of,
    means_of_features,
    prototype_images,
    require_new_entry,
)
from lightning_mvp.modules.fit import fit_quietly
from lightning_mvp.modules.meta_vote import MetaVoteModule
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.importance import Scores, magnitude_importance
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.latest import latest_of
from lightning_mvp.voting.vote import Ballots, vote
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.entry_file import Storage
from lightning_mvp.zoo.families import families, family_of
from lightning_mvp.zoo.lineage import Member, lineage
from lightning_mvp.zoo.rebuild import as_tensors, dense_backbone, entry_masks
from lightning_mvp.zoo.waves import family_members, growth_config, next_wave, wave_voters
from lightning_mvp.zoo.zoo import ModelZoo

Which = Literal["latest", "nearest"]


class WorseThanStartError(ValueError):
    """A model is worse on validation images than the vote it began with: it is no use to later votes."""


@dataclass(frozen=True)
class Grown:
    """What :func:`grow` made.

    Args:
        name: of the new entry.
        module: the trained model.
        start_accuracy: of the vote with its ridge head, before the first step, on the task's validation images.
        val_accuracy: after the last step.
    """

    name: str
    module: MetaVoteModule
    start_accuracy: float
    val_accuracy: float


def grow(
    zoo: ModelZoo | str | Path,
    datamodule: TaskDataModule,
    *,
    steps: int = 100,
    neighbours: int = 8,
    which: Which = "latest",
    among: int | None = None,
    wave: int | None = None,
    config: str | None = None,
    seed: int = 0,
    keep_worse: bool = False,
    storage: Storage = "float32",
    precision: str = "auto",
    **options: Any,
) -> Grown:
    """Begin with the vote of a zoo's entries, train for some steps, and add the result to the zoo: in one process.

    Under a Trainer of your own, or of several processes, do it in three steps: :meth:`MetaVoteModule.from_zoo`, your
    ``trainer.fit``, :func:`add_voted`.

    Args:
        zoo: a zoo or its folder; it needs a few entries that were pruned from its backbone, its seeds.
        datamodule: of the task.
        steps: of the optimizer.
        neighbours: how many entries vote; 1 with ``which="latest"`` trains one net on one task after the other.
        which: ``"latest"``: those of the highest waves; ``"nearest"``: those most similar to the task.
        among: with ``"nearest"``, look at so many of the latest entries only; None looks at all.
        wave: of the new entry: entries of lower waves may vote, as they were listed when this wave began. None: all
            entries vote, and the new one's wave is one more than theirs.
        config: hash of the seeds' pruning config; None takes the family with most entries.
        seed: of the images that decide which entries are nearest; part of the entry's id.
        keep_worse: add a model also if it is worse than its start.
        storage: ``"float32"``, or ``"bfloat16"`` for half the bytes.
        precision: as the Trainer's.
        options: of :meth:`MetaVoteModule.from_zoo`, those of :class:`TaskModule` included; part of the entry's id.

    Raises:
        FileExistsError: the zoo has this entry already; nothing is trained.
        WorseThanStartError: the model was better before it was trained; nothing is added.
        ValueError: no seeds, or an argument out of its range.

    Example:
        >>> grown = grow("zoo/", TaskDataModule("digits", ["0", "1"], "zeros"), steps=100)  # doctest: +SKIP
        >>> grown.name  # doctest: +SKIP
        'zeros--0f3c2a91'
    """
    require_growth(neighbours, which, among)
    zoo = zoo if isinstance(zoo, ModelZoo) else ModelZoo(zoo)
    family, members = family_members(zoo, config)
    rule = {
        "neighbours": neighbours,
        "which": which,
        "among": among,
        "wave": next_wave(members) if wave is None else require_wave(wave),
        "steps": steps,
        "seed": seed,
        "keep_worse": keep_worse,
        "training": {
            "batch_size": datamodule.batch_size,
            "augment": datamodule.augment,
            "precision": precision,
            **{name: value for name, value in options.items() if name != "backbone"},
        },
    }
    own = growth_config(family, members, rule)
    require_new_entry(zoo.path, datamodule.facts, own)
    voters = members if wave is None else wave_voters(zoo, own)
    module = start_of_growth(zoo, datamodule, voters, neighbours, which, among, seed=seed, **options)
    start = start_accuracy(module, datamodule, options.get("head_init", "ridge"))
    begin = time.perf_counter()
    fit_quietly(module, datamodule, steps, precision=precision)
    name = add_voted(
        zoo,
        module,
        datamodule,
        config=own,
        start_accuracy=None if keep_worse else start,
        info={"steps": steps, "seed": seed, "seconds": time.perf_counter() - begin, "start_val_accuracy": start},
        storage=storage,
    )
    return Grown(name, module, start, zoo.header(name)["info"]["val_accuracy"])


def start_of_growth(
    zoo: ModelZoo,
    datamodule: TaskDataModule,
    voters: Sequence[Member],
    neighbours: int = 8,
    which: Which = "latest",
    among: int | None = None,
    exclude: Collection[str] = (),
    **options: Any,
) -> MetaVoteModule:
    """The vote that an entry grows from, not trained yet.

    Args:
        zoo: that of the voters.
        datamodule: of the task.
        voters: who may vote, by (wave, name).
        neighbours: how many of them do.
        which: ``"latest"`` or ``"nearest"``.
        among: with ``"nearest"``, of the latest so many.
        exclude: names of entries that may not vote.
        options: of :meth:`MetaVoteModule.from_zoo`.

    Raises:
        ValueError: ``among`` with ``which="latest"``, or below ``neighbours``; or another choice.
    """
    require_growth(neighbours, which, among)
    voters = [voter for voter in voters if voter.name not in exclude]
    if which == "latest":
        ranking = latest_of(voters, neighbours, zoo, datamodule.facts.classes)
        return MetaVoteModule.from_zoo(zoo, datamodule, ranking, **options)
    near = {voter.name for voter in (voters if among is None else voters[-among:])}
    family, names = next((family, names) for family, names in families(zoo).items() if near & set(names))
    rest = tuple(name for name in names if name not in near)
    return MetaVoteModule.from_zoo(zoo, datamodule, neighbours, config=family, exclude=rest, **options)


def require_growth(neighbours: int, which: str, among: int | None) -> None:
    """Refuse what can't say which entries vote.

    Example:
        >>> require_growth(8, "latest", 24)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `among` to be None with which='latest', which looks at the latest anyway, but got 24.
    """
    require_choice("which", which, Which)
    if neighbours < 1:
        raise ValueError(f"Expected argument `neighbours` to be at least 1, but got {neighbours}.")
    if among is None:
        return
    if which == "latest":
        raise ValueError(
            f"Expected argument `among` to be None with which='latest', which looks at the latest anyway, but got {among}."
        )
    if among < neighbours:
        raise ValueError(f"Expected argument `among` to be at least the {neighbours} that vote, but got {among}.")


def require_wave(wave: int) -> int:
    """Refuse the wave of the seeds, and what is no wave."""
    if type(wave) is not int or wave < 1:
        raise ValueError(f"Expected argument `wave` to be an integer of at least 1 (0 are the seeds), but got {wave!r}.")
    return wave


def start_accuracy(module: MetaVoteModule, datamodule: TaskDataModule, head_init: str = "ridge") -> float:
    """The accuracy of a vote before its first step, on the task's validation images, with the ridge head.

    Args:
        module: not trained yet.
        datamodule: of the task.
        head_init: how its head was set; a random one is kept, and replaced for this measurement only.
    """
    images, labels = datamodule.val_images()
    if head_init == "ridge":
        return module.accuracy_on(images, labels)
    own = {name: tensor.clone() for name, tensor in module.head.state_dict().items()}
    module.initialise_head(datamodule, "ridge")
    try:
        return module.accuracy_on(images, labels)
    finally:
        module.head.load_state_dict(own)


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
) -> str:
    """Add a trained voted model to the zoo that it was voted from: the last of three steps, see the example.

    Its masks are the vote's, its importance is the mean of its parents' with the vote's coefficients (no gradients were
    looked at, and later votes break ties by it), its prototypes are θ⁰'s, like those of any entry. Of several processes
    call it in the first only.

    Args:
        zoo: a zoo or its folder; the entries that voted must still be there.
        module: made by :meth:`MetaVoteModule.from_zoo`, or loaded from a checkpoint of one, and trained.
        datamodule: of the same task.
        start_accuracy: on the task's validation images before the first step, see :func:`start_accuracy`; a model that is
            worse now is refused. None adds any.
        config: what the entry's id is made of, besides the task's name: all that tells one training from another. None:
            the module's optimizer settings, the number of voters, and the wave.
        wave: of the entry; None: ``config["wave"]``, else one more than any entry's of its family.
        info: anything else worth keeping, such as ``{"steps": 100}``; plain JSON.
        storage: ``"float32"``, or ``"bfloat16"`` for half the bytes.
        folder: where the entry is kept if the zoo can't be written.

    Returns:
        The name of the entry.

    Raises:
        WorseThanStartError: worse on validation images than ``start_accuracy``.
        ValueError: a module of another task or another zoo, or whose voters are gone.
        OSError: the zoo can't be written; the message says where the entry is kept.

    Example:
        >>> module = MetaVoteModule.from_zoo("zoo/", data)  # doctest: +SKIP
        >>> start = start_accuracy(module, data)  # doctest: +SKIP
        >>> L.Trainer(max_steps=100).fit(module, datamodule=data)  # doctest: +SKIP
        >>> add_voted("zoo/", module, data, start_accuracy=start, info={"steps": 100})  # doctest: +SKIP
    """
    zoo = zoo if isinstance(zoo, ModelZoo) else ModelZoo(zoo)
    if module.facts != datamodule.facts:
        raise ValueError(
            f"Expected argument `datamodule` to be of the module's task {module.facts.name!r}, with the same classes and "
            f"images, but got one of {datamodule.facts.name!r}."
        )
    accuracy = module.accuracy_on(*datamodule.val_images())
    if start_accuracy is not None and not accuracy >= start_accuracy:
        raise WorseThanStartError(
            f"Expected the model of {module.facts.name!r} to be no worse on validation images than the vote it began "
            f"with, but it has {accuracy:.1%} where the start had {start_accuracy:.1%}. It was not added to the zoo "
            f"{zoo.path}. Train for more steps or at another learning rate, or add it anyway: start_accuracy=None here, "
            "growth.keep_worse=true for `mvp-prune`."
        )
    parents = _parents(zoo, module)
    family, members = family_members(zoo, family_of(parents[0].name, parents[0].config))
    if wave is None:
        wave = next_wave(members) if config is None else config.get("wave") or next_wave(members)
    if config is None:
        settings = {name: module.hparams[name] for name in module.own_hparams if name not in _NO_SETTINGS}
        rule = {"neighbours": len(parents), "wave": wave, "training": settings, **_steps(info)}
        config = growth_config(family, members, rule)
    entry = grown_entry(zoo, module, datamodule, parents, config, {**(info or {}), "val_accuracy": accuracy, "wave": wave})
    add_or_keep(zoo, entry, Path(folder), storage)
    return entry.name


_NO_SETTINGS = ("recipe", "facts", "report")


def _steps(info: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (info or {}).items() if name in ("steps", "seed")}


def _parents(zoo: ModelZoo, module: MetaVoteModule) -> list[ZooEntry]:
    """The entries that voted for a module, in the order of its report."""
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
) -> ZooEntry:
    """The entry of a trained voted model, not added to anything yet.

    Args:
        zoo: that of its parents.
        module: the model; its report says how the vote went.
        datamodule: of the task.
        parents: the entries that voted, in the report's order.
        config: of the entry's id.
        info: what the run came to; parents and generation are added.

    Raises:
        ValueError: the parents are not what they were when they voted.
    """
    report, facts = module.report, datamodule.facts
    dense = dense_backbone(zoo)
    groups = find_groups(dense, module.example_input_array).listed(zoo.group_sizes, str(zoo.path))
    importance = {parent.name: parent.importance for parent in parents}
    magnitude = magnitude_importance(dense.state_dict(), groups)
    masks = _voted_masks({parent.name: entry_masks(parent) for parent in parents}, report, importance, magnitude)
    coefficients = report["coefficients"]
    metrics = {name: info[name] for name in ("val_accuracy",) if name in info}
    theta0 = zoo.theta0()
    return entry_of(
        facts,
        config,
        masks,
        mean_importance(importance, coefficients),
        {name: tensor for name, tensor in module.backbone.state_dict().items() if name in theta0},
        module.head.state_dict(),
        means_of_features(dense, *prototype_images(datamodule), len(facts.classes)),
        {
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
    )


def mean_importance(
    importance: Mapping[str, Mapping[str, np.ndarray]], coefficients: Mapping[str, float]
) -> Scores:
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
