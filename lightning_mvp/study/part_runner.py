"""The parts of a comparison, one process each: pre-training, pruned models, rankings, each method on each task."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.backbones.create import create_backbone, recipe_of
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.fitting.fit import AccuracyCurve, fit_quietly
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.study.grown_zoo import grow_one, open_grown_zoo
from lightning_mvp.study.methods import METHODS, Trial
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.overlap import leep_matrix, study_overlap
from lightning_mvp.study.records import read_record, read_records, write_record
from lightning_mvp.study.starting_points import StartingPoint, StartingPoints
from lightning_mvp.study.study_context import StudyContext
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.study.torch_pruning_cutter import TorchPruningCutter
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.splits import TaskSpec
from lightning_mvp.training.rounds import Cutter, OwnCutter, endless, prune_and_cut
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.ranking import rank_neighbours
from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.zoo import ModelZoo


class PartRunner(StudyContext):
    """Runs parts of a study in this process, one after the other."""

    def run(self, part: str) -> None:
        """Do one part, unless its record is there already.

        Args:
            part: ``"pretrain"``, ``"parent"``, ``"generic"`` (or ``"generic_parent"``, ``"generic_zoo"``),
                ``"source-007"``, ``"grow-NAME-007"``, ``"overlap"``, ``"rank--target-003"``,
                ``"target-003--mvp@100"`` or ``"development-003--TRIAL"``.
        """
        if read_record(self.folder, part) is not None:
            return
        L.seed_everything(self.settings.seed, verbose=False)
        start = time.perf_counter()
        record = self._make(part)
        seconds = {"seconds": time.perf_counter() - start} | record
        write_record(self.folder, part, {"part": part, "seed": self.settings.seed, **seconds})

    def _make(self, part: str) -> dict[str, Any]:
        settings = self.settings
        alone = {"pretrain": self.pretrain, "parent": self.make_parent, "overlap": self.overlap}
        if part in alone:
            return alone[part]()
        if part.startswith("grow-"):
            name, _, index = part.removeprefix("grow-").rpartition("-")
            return self.grow(name, int(index))
        if part.startswith("generic"):
            from_parent, steps = part == "generic_parent", settings.source_steps
            origin = self.zoo_origin if from_parent else self.theta0
            ratio = settings.entry_ratio if from_parent else settings.pruning_ratio
            union = TaskSpec("generic", self.split.seen)
            return self.prune(union, part, origin, settings.zoo_steps if part == "generic_zoo" else steps, ratio)
        first, _, second = part.partition("--")
        if first.startswith("rank"):
            return self.rank(self.task(second), first.partition("-")[2] or "leep")
        if second:
            on_target = not first.startswith("development")
            trials = settings.measured() if on_target else settings.tried()
            trial = next(trial for trial in trials if trial.name == second)
            return self.compare(self.task(first), trial, test=on_target)
        return self.prune(self.task(first), "zoo", self.zoo_origin, settings.source_steps, settings.entry_ratio)

    # What targets begin with ------------------------------------------------------------------------------------------

    def pretrain(self) -> dict[str, Any]:
        """θ⁰: train the backbone on all seen classes, or take the weights that the settings name."""
        settings = self.settings
        options = {"steps": 300, "batch_size": 128, "learning_rate": None, "augment": "crop", **settings.pretrain}
        # Large batches allow a higher rate; how high depends on the optimizer.
        rate = options["learning_rate"] or 4 * settings.optim.get("learning_rate", 0.05)
        backbone = create_backbone(settings.recipe, pretrained=settings.pretrained, weights=settings.weights)
        if settings.weights is not None or settings.pretrained:
            save_weights(backbone, self.theta0_path, overwrite=True)
            return {"weights": settings.weights or "timm", "steps": 0}
        task = TaskSpec("pretrain", self.split.seen)
        data = self.datamodule(task, batch_size=options["batch_size"], augment=options["augment"])
        module = TaskModule.for_task(backbone, data.facts, **{**settings.optim, "learning_rate": rate})
        self.fit(module, data, options["steps"], gradient_clip_val=None)
        accuracy = module.accuracy_on(*data.val_images())
        # A file without a record is of a run that was stopped in between, and is replaced.
        save_weights(module.backbone, self.theta0_path, overwrite=True)
        return {"classes": len(self.split.seen), "steps": options["steps"], "val_accuracy": accuracy}

    def make_parent(self) -> dict[str, Any]:
        """The zoo's parent: θ⁰ pruned mildly on all source classes, by cutting."""
        settings, origin = self.settings, self.theta0
        parent = {"rounds": settings.pruning.get("rounds", 8), "batch_size": settings.batch_size}
        parent |= settings.parent or {}
        steps, batch_size = parent.pop("steps"), parent.pop("batch_size")
        rate = parent.pop("learning_rate", settings.optim.get("learning_rate", 0.05))
        options = {**settings.optim, "learning_rate": rate, "mimic": parent.pop("mimic", 0.0)}
        data = self.datamodule(TaskSpec("parent", self.split.seen), batch_size=batch_size)
        pruning = self.scratch_settings(settings, **parent)
        module = self._with_head_and_teacher(origin, data, options)
        cutter = OwnCutter(origin.pruned, origin.cost, pruning)
        module = self._cut(module, data, cutter, pruning, steps, settings)
        save_weights(module.backbone, self.folder / "parent.safetensors", overwrite=True)
        return {
            "recipe": recipe_of(module.backbone),
            "steps": steps,
            "val_accuracy": module.accuracy_on(*data.val_images()),
            **origin.measure(cutter.masks),
        }

    def prune(self, task: TaskSpec, zoo_name: str, origin: Origin, steps: int, ratio: float) -> dict[str, Any]:
        """A zoo entry: ridge head, then iterative pruning in a Trainer."""
        data, zoo = self.datamodule(task), self.folder / zoo_name
        module = self._with_head_and_teacher(origin, data, self.settings.optim)
        callback = self.pruner(pruning_ratio=ratio, task=data.facts, zoo=zoo)
        name = entry_id(task.name, callback.config(steps))
        if (zoo / "zoo.json").exists() and name in ModelZoo(zoo):
            # A run was stopped between entry and record, so that its seconds and rounds are not known.
            ModelZoo(zoo).remove(name)
        rounds = RoundMasks(callback)
        self.fit(module, data, steps, callback, rounds)
        return {
            "entry": name,
            "task": task.name,
            "classes": list(task.classes),
            "steps": steps,
            "val_accuracy": module.accuracy_on(*data.val_images()),
            "rounds": rounds.found,
            **origin.measure(callback.masks),
        }

    def _with_head_and_teacher(self, origin: Origin, data: TaskDataModule, options: dict[str, Any]) -> TaskModule:
        module = TaskModule.for_task(origin.build(), data.facts, **options)
        module.initialise_head(data)
        module.take_teacher(module.backbone, data, seed=self.settings.seed)
        return module

    def pruner(self, **options: Any) -> MVPCallback:
        own = {"head": "head", "seed": self.settings.seed, "training": {}}  # a study's settings say how it trains
        return MVPCallback(**{**self.settings.pruning, **own, **options})

    def fit(self, module: TaskModule, data: TaskDataModule, steps: int, *callbacks: L.Callback, **options: Any) -> None:
        options = {"gradient_clip_val": self.settings.gradient_clip, **options}
        fit_quietly(module, data, steps, callbacks, precision=self.settings.precision, **options)

    def grow(self, name: str, index: int) -> dict[str, Any]:
        """One more entry of a zoo that grows."""
        growth = self.settings.growth(name)
        task = self.task(growth.sequence(self.settings.split["sources"])[index])
        data = self.datamodule(task, augment=growth.augment)
        return grow_one(open_grown_zoo(self.folder, name, self.settings), data, growth, index, self.settings)

    # What is measured -------------------------------------------------------------------------------------------------

    def rank(self, task: TaskSpec, similarity: Any) -> dict[str, Any]:
        """The similarity of every zoo entry to a task; methods that choose neighbours share it, and its seconds."""
        data, zoo = self.datamodule(task), ModelZoo(self.zoo_home / "zoo")
        groups = self.zoo_origin.groups  # found once in a process, so not in the seconds of any ranking
        begin = time.perf_counter()
        ranked = rank_neighbours(
            zoo,
            *data.scoring_images(seed=self.settings.seed),
            backbone=self.zoo_origin.build(),
            groups=groups,
            similarity=similarity,
            k=None,
            classes=data.facts.classes,
            seed=self.settings.seed,
        )
        seconds, evidence = time.perf_counter() - begin, ranked.evidence
        found = {} if evidence is None else {"evidence": asdict(evidence)}
        return {"seconds": seconds, "similarities": [vars(neighbour) for neighbour in ranked], **found}

    def overlap(self) -> dict[str, Any]:
        """What the masks of all pairs of zoo tasks have in common."""
        path, names = self.settings.superclasses, self.settings.sources
        superclasses = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        sources = read_records(self.folder, names)
        rows = study_overlap(sources, self.zoo_origin, leep_matrix(self.folder, names), superclasses)
        return {"rows": [asdict(row) for row in rows]}

    def compare(self, task: TaskSpec, trial: Trial, *, test: bool) -> dict[str, Any]:
        """One method on one task: start, fine-tune, measure on test images, or on validation images."""
        settings = self.settings.changed(trial.changes)
        data = self.datamodule(task, batch_size=settings.batch_size, augment=settings.augment)
        method, steps = trial.method, trial.steps
        _ = self.zoo_origin.cost, self.theta0.cost  # counted once in a process, so not in the seconds of any method
        begin = time.perf_counter()
        start = StartingPoints(self, settings, data).make(method)
        module = TaskModule.for_task(start.backbone, data.facts, **settings.optim)
        module.initialise_head(data)
        self._mimic(module, data, settings, start)
        ready = time.perf_counter()
        curve = AccuracyCurve(*(data.test_images() if test else data.val_images()), steps=curve_steps(steps))
        curve.evaluate(module, 0)
        notes = dict(start.notes)
        if METHODS[method].kind == "rounds" or method == "mvp_refine":
            cutter, pruning = self.make_cutter(trial, module, data, settings, start.masks)
            module = self._cut(module, data, cutter, pruning, steps, settings, curve)
            notes |= _measure(module, cutter, start.origin)
        else:
            self.fit(module, data, steps, curve, gradient_clip_val=settings.gradient_clip)
        fitted = time.perf_counter() - ready - curve.seconds
        searched = METHODS[method].kind == "zoo" and method not in ("random_vote", "all_vote", "grown")
        similarity = settings.vote.get("similarity", "leep")
        return {
            "task": task.name,
            "classes": list(task.classes),
            "method": method,
            "steps": steps,
            "trial": trial.name,
            "changes": dict(trial.changes),
            "accuracy": curve.points[-1][1],
            "curve": curve.points,
            "start_seconds": ready - begin + (self.ranking(task.name, similarity)["seconds"] if searched else 0.0),
            "fit_seconds": fitted,
            **notes,
        }

    def _mimic(self, module: TaskModule, data: TaskDataModule, settings: StudySettings, start: StartingPoint) -> None:
        """Give a module that mimics its teacher: the backbone it was cut from, or θ⁰ with ``vote.teacher: theta0``."""
        if not module.mimic:
            return
        origin = self.theta0 if settings.vote.get("teacher") == "theta0" else start.origin
        masks = start.masks if origin is start.origin else None
        module.take_teacher(origin.build(), data, origin.groups, masks, settings.seed)

    def make_cutter(
        self, trial: Trial, module: TaskModule, data: TaskDataModule, settings: StudySettings, masks: Masks | None
    ) -> tuple[Cutter, PruningSettings]:
        """How a method prunes while it trains: by Torch-Pruning, by a criterion of ours, or a vote once more.

        Args:
            trial: the method with its steps.
            module: where it starts.
            data: of the task.
            settings: of the study, with the trial's changes.
            masks: the units that a vote has left, for ``mvp_refine``.
        """
        origin = self.theta0
        if trial.method == "torch_pruning":
            pruning = self.scratch_settings(settings)
            return TorchPruningCutter(module, pruning, origin.example, endless(data)), pruning
        if trial.method == "mvp_refine":
            origin, steps = self.zoo_origin, settings.vote.get("refine_after", trial.steps // 4)
            one = {"criterion": "taylor", "rounds": 1, "steps_per_round": steps, "pruning_ratio": settings.entry_ratio}
            pruning = self.scratch_settings(settings, **one)
            left = find_groups(module.backbone, origin.example, check=False)
            return OwnCutter(origin.pruned, origin.cost, pruning, masks, left.select(origin.pruned.names)), pruning
        pruning = self.scratch_settings(settings, criterion=trial.method)
        return OwnCutter(origin.pruned, origin.cost, pruning), pruning

    def _cut(
        self,
        module: TaskModule,
        data: TaskDataModule,
        cutter: Cutter,
        pruning: PruningSettings,
        steps: int,
        settings: StudySettings,
        curve: AccuracyCurve | None = None,
    ) -> TaskModule:
        probe = None if curve is None else lambda step, module: curve.evaluate(module, step)
        clip, precision = settings.gradient_clip, settings.precision
        return prune_and_cut(module, data, cutter, pruning, steps, clip=clip, precision=precision, probe=probe)


def _measure(module: TaskModule, cutter: Cutter, origin: Origin) -> dict[str, Any]:
    """Sizes after pruning, and the masks if they are known: Torch-Pruning does not tell them."""
    if cutter.masks is None:
        return {"parameters": count_parameters(module.backbone), "macs": count_macs(module.backbone, origin.example)}
    return {"masks": units_kept(cutter.masks), **origin.measure(cutter.masks)}


class RoundMasks(L.Callback):
    """Keeps for each round the units that it left, and the fraction removed.

    Args:
        pruning: the callback that prunes; it comes before this one.
    """

    def __init__(self, pruning: MVPCallback) -> None:
        self.pruning = pruning
        self.found: list[dict[str, Any]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if self.pruning.rounds_done > len(self.found):
            masks, step = self.pruning.masks, self.pruning.step
            self.found.append({"pruning_ratio": masks.pruning_ratio, "step": step, "kept": units_kept(masks)})


def units_kept(masks: Masks) -> dict[str, list[int]]:
    """The numbers of the units that each group keeps, as JSON has them."""
    return {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()}


def curve_steps(steps: int) -> list[int]:
    """The steps after which accuracy is recorded: none, then doubling up to the last.

    Example:
        >>> curve_steps(40), curve_steps(0)
        ([0, 5, 10, 20, 40], [0])
    """
    points, step = [steps], steps
    while step > max(2, steps // 8):
        step //= 2
        points.append(step)
    return sorted({0, *points})
