"""A zoo that grows by use: a voted model, once it is trained, becomes an entry that later votes begin with."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_mvp.backbones.passes import Place, Where
from lightning_mvp.checks import require_whole
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.adding import add_voted
from lightning_mvp.training.batches import AnyTask
from lightning_mvp.training.decision import is_first_process
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.voting.latest import latest_of
from lightning_mvp.voting.options import stored_options
from lightning_mvp.zoo.entry_file import Storage
from lightning_mvp.zoo.families import families
from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.new_entry import require_new_entry
from lightning_mvp.zoo.waves import family_members, growth_config, next_wave, wave_voters
from lightning_mvp.zoo.zoo import ModelZoo

Which = Literal["latest", "nearest"]


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
            **stored_options({name: value for name, value in options.items() if name != "backbone"}),
        },
    }
    own = growth_config(family, members, rule)
    require_new_entry(zoo.path, datamodule.facts, own, remedy="")
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
        voters: who may vote, by (wave, name); of several processes only the first one's are looked at.
        neighbours: how many of them do.
        which: ``"latest"`` or ``"nearest"``.
        among: with ``"nearest"``, of the latest so many.
        exclude: names of entries that may not vote.
        options: of :meth:`MetaVoteModule.from_zoo`.

    Raises:
        ValueError: ``among`` with ``which="latest"``, or below ``neighbours``; or another choice.
    """
    require_growth(neighbours, which, among)
    if not is_first_process():
        return MetaVoteModule.from_zoo(zoo, datamodule, **options)  # which waits for the first one's vote
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
        ValueError: Expected argument `among` to be None with which='latest', but got 24.
    """
    require_choice("which", which, Which)
    if neighbours < 1:
        raise ValueError(f"Expected argument `neighbours` to be at least 1, but got {neighbours}.")
    if among is None:
        return
    if which == "latest":
        raise ValueError(f"Expected argument `among` to be None with which='latest', but got {among}.")
    if among < neighbours:
        raise ValueError(f"Expected argument `among` to be at least the {neighbours} that vote, but got {among}.")


def require_wave(wave: int) -> int:
    """Refuse the wave of the seeds, and what is no wave."""
    require_whole(wave, "argument `wave`", advice="Wave 0 are the seeds.")
    return wave


def start_accuracy(
    module: MetaVoteModule, datamodule: AnyTask, head_init: str = "ridge", *, device: Where = None
) -> float:
    """The accuracy of a vote before its first step, on the task's validation images, with the ridge head.

    Args:
        module: not trained yet.
        datamodule: of the task.
        head_init: how its head was set; a random one is kept, and replaced for this measurement only.
        device: as in :meth:`MetaVoteModule.from_zoo`.
    """
    place = Place.at(device).alone
    if head_init == "ridge":
        return module.accuracy_in(datamodule, device=place)
    own = {name: tensor.clone() for name, tensor in module.head.state_dict().items()}
    module.initialise_head(datamodule, "ridge", device=place)
    try:
        return module.accuracy_in(datamodule, device=place)
    finally:
        module.head.load_state_dict(own)
