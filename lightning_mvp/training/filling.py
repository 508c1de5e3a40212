"""One entry for a zoo without a Trainer: what `MVPCallback` makes of a fit, by cutting between rounds or at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_mvp.agreement import on_rank_zero, require_equal_on_all_ranks
from lightning_mvp.backbones.passes import Place
from lightning_mvp.pruning.engine import fractions_kept
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.schedule import require_time_for, warn_of_low_rate
from lightning_mvp.pruning.settings import PruningSettings, entry_config
from lightning_mvp.pruning.words import plan_words, round_words
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.cut_run import CutRun
from lightning_mvp.training.once import cut_once
from lightning_mvp.training.rounds import OwnCutter, prune_and_cut
from lightning_mvp.training.task import TaskModule, one_cycle
from lightning_mvp.voting.class_means import task_means
from lightning_mvp.zoo.new_entry import ZooTarget, entry_of


def prune_into_zoo(
    module: TaskModule,
    data: TaskDataModule,
    zoo: ZooTarget,
    settings: PruningSettings,
    steps: int,
    fabric: L.Fabric,
    *,
    training: Mapping[str, Any] | None = None,
    clip: float | None = None,
    folder: Path = Path(),
    once: int | None = None,
) -> CutRun:
    """Prune by cutting between rounds, and add the entry that :class:`MVPCallback` adds by zeroing.

    Args:
        module: θ⁰ with its head; it is used up.
        data: of the task.
        zoo: where the entry goes, and its task.
        settings: how to prune.
        steps: optimizer steps in all.
        fabric: launched; every rank calls this with the same model.
        training: how the model is trained, plain JSON; part of the entry's id, as that of :class:`MVPCallback`.
        clip: largest gradient norm; None leaves gradients as they are.
        folder: where the entry is kept if the zoo can't be written.
        once: None: train for ``steps``. A number: remove all units at once and train nothing, with ``steps`` 0; weights
            are then reconstructed by this number of images (:func:`~lightning_mvp.training.once.prune_once`).

    Raises:
        FileExistsError: the zoo has this entry already.
        FloatingPointError: the loss is not finite; nothing is written.
        RuntimeError: ranks have decided a round differently, or rank 0 could not write.
        ValueError: a schedule that doesn't fit, a foreign zoo, or what can't be pruned.
    """
    facts, schedule = data.facts, settings.schedule(steps)
    if once is None:
        require_time_for(schedule, steps)
    zoo.reserve(fabric, entry_config(settings, steps, training))
    zoo.capture(fabric, module.backbone)
    assert isinstance(module.example_input_array, Tensor)
    prunable = find_prunable(module.backbone, (module.example_input_array,), settings, contract=zoo.contract(fabric))
    zoo.open(fabric, module.backbone, prunable.every)
    place, seen_by = Place.of(fabric), on_rank_zero(fabric, zoo.prototype_facts)
    prototypes = task_means(module.backbone, data, seen_by, place).means()

    own = module.training_options
    cutter = OwnCutter(prunable.groups, prunable.cost, settings)
    rounds: list[tuple[int, int, float]] = []
    start = time.perf_counter()
    if once is None:
        stay = prunable.whole, prunable.without_units
        words = plan_words(schedule, steps, settings.ratio_of, len(prunable.groups), *stay)
        rank_zero_info(f"{facts.name}: {words}")
        rounds.append((0, 0, 1.0))

        def tell(step: int, _: TaskModule) -> None:
            if cutter.round > rounds[-1][1]:
                kept = fractions_kept(prunable.cost, cutter.masks)
                rounds.append((step, cutter.round, kept["units"]))
                rank_zero_info(f"{facts.name}: {round_words(cutter.round, settings.rounds, step, kept)}")

        small = prune_and_cut(module, data, cutter, settings, steps, clip=clip, fabric=fabric, probe=tell)
    else:
        small = cut_once(module.to(fabric.device), data, cutter, once, place)
        require_equal_on_all_ranks(fabric, cutter.masks.fingerprint, 1)
    seconds = time.perf_counter() - start
    if once is None and own["schedule"] == "onecycle":
        peak = own["learning_rate"]
        warn_of_low_rate(peak * one_cycle(schedule.last_step - 1, steps), peak)
    accuracy = small.accuracy_in(data, device=place)

    def write() -> None:
        theta0 = zoo.theta0
        masks, importance = prunable.of_all_groups(cutter.masks, cutter.importance)
        entry = entry_of(
            facts,
            zoo.config,
            masks,
            importance,
            {name: tensor for name, tensor in small.backbone.state_dict().items() if name in theta0},
            small.head.state_dict(),
            prototypes,
            {
                **data.data.described(),
                "steps": steps,
                "seed": settings.seed,
                "seconds": seconds,
                "val_accuracy": accuracy,
                "cut_between_rounds" if once is None else "once": True,
            },
            kept=fractions_kept(prunable.cost, cutter.masks),
            metrics={"val_accuracy": accuracy},
            seen_by=seen_by,
        )
        zoo.add(entry, folder)

    on_rank_zero(fabric, write)
    return CutRun(small, cutter.masks, accuracy, seconds, prunable.groups, prunable.cost, tuple(rounds))
