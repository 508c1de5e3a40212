"""Pruned at one go and not trained: one-shot masks, weights by reconstruction, a head in closed form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_mvp.backbones.copies import detached_copy
from lightning_mvp.backbones.passes import Place, Where, images_a_batch, reestimate_over
from lightning_mvp.backbones.reconstruct import PENALTY, reconstruct, require_count
from lightning_mvp.pruning.choose import RatioOf, Scope
from lightning_mvp.pruning.criteria import observe_batches
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import CriterionChoice, PruningSettings
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.cut_run import CutRun
from lightning_mvp.training.rounds import OwnCutter
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.target import REESTIMATION_BATCHES, Target

IMAGES = 1000
SCORING_IMAGES = 512
SCORING_BATCH = 32
# All units are removed in one round, before any step. These values replace the configured schedule, which says nothing
# here, so that entries that differ only in it have one id.
ONE_ROUND: dict[str, Any] = {"rounds": 1, "warmup_steps": 0, "steps_per_round": None, "power": 1.0}


def prune_once(
    backbone: nn.Module,
    data: TaskDataModule,
    pruning_ratio: float = 0.8,
    *,
    criterion: CriterionChoice = "taylor",
    ratio_of: RatioOf = "units",
    scope: Scope = "layer",
    floor: int = 1,
    seed: int = 0,
    round_to: int = 1,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    images: int = IMAGES,
    **options: Any,
) -> CutRun:
    """A small model of a pre-trained backbone for one task in seconds: no zoo, no training, only the training images.

    Batch-norm statistics are re-estimated on the task's training images, a ridge head is fitted, units are scored and
    all removed at once; the smaller backbone is reconstructed layer by layer
    (:func:`~lightning_mvp.backbones.reconstruct.reconstruct`), gets batch-norm statistics of its own, and a ridge head.
    It is ready for use, or for a Trainer.

    Args:
        backbone: pre-trained, from :func:`create_backbone` (its recipe is needed), without classifier. Not changed.
        data: the task; only its training images decide anything.
        pruning_ratio: the fraction removed, in (0, 1).
        criterion: ``"taylor"``, ``"magnitude"``, ``"random"``, or one of your own, as in
            :class:`~lightning_mvp.callbacks.mvp.MVPCallback`.
        ratio_of: what the ratio is a fraction of: ``"units"``, ``"params"`` or ``"macs"``.
        scope: ``"layer"``: every group loses the same fraction; ``"global"``: one ranking of normalised scores.
        floor: the least number of units a group keeps.
        seed: of random scores, and of the order in which images are taken.
        round_to: round the channels left in each group up to a multiple of this; never whole heads.
        include: which groups to prune, by patterns of their names or by kind; None: all.
        exclude: which groups to leave whole, by patterns of their names or by kind.
        images: the number of training images by which weights are reconstructed; 0 leaves them as they were cut.
        options: of :class:`TaskModule`, for training it later: ``learning_rate``, ``mimic`` and so on.

    Returns:
        The small ``module``, its ``masks``, its ``val_accuracy``, the ``seconds`` it took, and a ``table()``.

    Raises:
        ValueError: an argument out of its range, a backbone without recipe or with units that can't be pruned.

    Example:
        >>> from lightning_mvp import TaskDataModule, create_backbone
        >>> few = {"characters": "ABDE", "per_class_train": 8, "per_class_val": 4}
        >>> data = TaskDataModule("glyphs", ["latin-capital-a", "latin-capital-b"], data_options=few)
        >>> backbone = create_backbone({"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1]}, "input_size": 32})
        >>> prune_once(backbone, data, 0.5).masks.pruning_ratio
        0.5
    """
    require_count(images, "images")
    settings = PruningSettings.among({**locals(), **ONE_ROUND})
    module = TaskModule.for_task(detached_copy(backbone), data.facts, **options)
    prunable = find_prunable(module.backbone, (module.example,), settings)
    cutter = OwnCutter(prunable.groups, prunable.cost, settings)
    start = time.perf_counter()
    small = cut_once(module, data, cutter, images)
    seconds = time.perf_counter() - start
    accuracy = small.accuracy_in(data)
    return CutRun(small, cutter.masks, accuracy, seconds, prunable.groups, prunable.cost)


def once_config(images: int) -> dict[str, Any]:
    """The part of an entry's id that says how it was made, besides its pruning settings; there is no training."""
    return {"once": {"images": images, "penalty": PENALTY, "scoring_images": SCORING_IMAGES}}


def cut_once(
    module: TaskModule, data: TaskDataModule, cutter: OwnCutter, images: int, where: Where = None
) -> TaskModule:
    """The small module with its head, from θ⁰ with any head.

    Args:
        module: θ⁰; it is used up.
        data: of the task.
        cutter: for θ⁰'s groups; it holds the masks and importance afterwards.
        images: the number of training images by which weights are reconstructed; 0: they are not.
        where: who makes the passes, where the module is: ranks share those for heads, and make the others alike.
    """
    place = Place.at(where)
    seed, groups, facts = cutter.settings.seed, cutter.groups, data.facts
    target = Target.read(data, len(facts.classes), REESTIMATION_BATCHES, seed)
    # No model is scored, or serves as an example, with the statistics of other images.
    reestimate_over(module.backbone, target.batches(facts.to_dict(), REESTIMATION_BATCHES), place)
    if cutter.criterion.uses_gradients:
        module.initialise_head(data, device=place)
        scoring = data.scoring_part(max(SCORING_IMAGES, len(facts.classes)), seed)
        order = torch.randperm(len(scoring), generator=torch.Generator().manual_seed(seed))
        size = min(SCORING_BATCH, max(2, images_a_batch(facts.input_size) // 2))  # gradients take twice the memory
        batches = data.pass_loader(scoring[order], facts, size)
        observe_batches(cutter.criterion, module.backbone, module.head, batches)
    small = cutter.cut(module, {}, 1 - cutter.settings.pruning_ratio)
    small.to(next(module.parameters()).device)
    if images:
        first = target.first(facts.to_dict(), images)
        small.backbone = reconstruct(small.backbone, module.backbone, groups, cutter.masks, first)
    reestimate_over(small.backbone, target.batches(facts.to_dict(), REESTIMATION_BATCHES), place)
    small.initialise_head(data, device=place)
    # For whoever trains it later with `mimic`.
    small.take_teacher(module.backbone, data, groups, cutter.masks, seed, device=place)
    return small
