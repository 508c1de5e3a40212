"""The parts of a comparison, one process each: pre-training, pruned models, rankings, each method on each task."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.backbones.create import create_backbone, recipe_of
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.fitting.fit import AccuracyCurve, fit_quietly
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.study.growth import Growth, grow_one, growing_zoo
from lightning_mvp.study.methods import METHODS, Trial
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.outside import TorchPruningCutter
from lightning_mvp.study.overlap import leep_matrix, study_overlap
from lightning_mvp.study.records import rank_part, read_record, write_record
from lightning_mvp.study.settings import StudySettings
from lightning_mvp.study.starts import Start, Starts
from lightning_mvp.tasks.data import ImageData, load_data
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.partition import stratified_split
from lightning_mvp.tasks.splits import TaskSpec, TaskSplit, split_tasks
from lightning_mvp.training.rounds import Cutter, OwnCutter, endless, prune_and_cut
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.ranking import rank_neighbours
from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.zoo import ModelZoo


class Workshop:
    """One process's share of a study: data, θ⁰ and groups are loaded once, each part is a method call.

    Args:
        folder: of the study.
        settings: of the study.
    """

    def __init__(self, folder: Path, settings: StudySettings) -> None:
        self.folder, self.settings = folder, settings

    @cached_property
    def data(self) -> ImageData:
        return load_data(**self.settings.data)

    @cached_property
    def halves(self) -> tuple[ImageData, ImageData]:
        """What models of the past learn from, and what new tasks bring: the same images unless settings part them."""
        if not self.settings.new_images:
            return self.data, self.data
        train = self.data.train
        past, new = (train[half] for half in stratified_split(train.labels, 0.5, self.settings.seed))
        return replace(self.data, train=past), replace(self.data, train=new)

    @cached_property
    def split(self) -> TaskSplit:
        return split_tasks(self.data.classes, **self.settings.split)

    @property
    def home(self) -> Path:
        """The folder of the study whose θ⁰ and parent are used."""
        return Path(self.settings.home or self.folder)

    @property
    def zoo_home(self) -> Path:
        """The folder of the study whose zoo and generic models are used."""
        return Path(self.settings.zoo_of or self.folder)

    @property
    def theta0_path(self) -> Path:
        return self.home / "theta0.safetensors"

    @cached_property
    def theta0(self) -> Origin:
        """The pre-trained backbone."""
        return self._origin(self.settings.recipe, self.theta0_path)

    def _origin(self, recipe: dict[str, Any], weights: Path) -> Origin:
        pruning = PruningSettings(**self.settings.pruning)
        return Origin(recipe, weights, tuple(self.data.train.images.shape[1:]), pruning.include, pruning.exclude)

    @cached_property
    def root(self) -> Origin:
        """What the zoo's entries begin with: θ⁰, or the parent that they share."""
        if self.settings.parent is None:
            return self.theta0
        record = read_record(self.home, "parent")
        assert record is not None, "the parent is pruned before any entry"
        return self._origin(record["recipe"], self.home / "parent.safetensors")

    def datamodule(self, task: TaskSpec, **options: Any) -> TaskDataModule:
        options = {"batch_size": self.settings.batch_size, "augment": self.settings.augment, **options}
        if task.name.startswith(self.settings.target_kind):
            options["images_per_class"] = self.settings.images_per_class
        is_new = task.name.startswith((self.settings.target_kind, "development"))
        return TaskDataModule(self.halves[is_new], task.classes, task.name, seed=self.settings.seed, **options)

    def fit(self, module: TaskModule, data: TaskDataModule, steps: int, *callbacks: L.Callback, **options: Any) -> None:
        options = {"gradient_clip_val": self.settings.gradient_clip, **options}
        fit_quietly(module, data, steps, callbacks, precision=self.settings.precision, **options)

    def pruner(self, **options: Any) -> MVPCallback:
        return MVPCallback(**{**self.settings.pruning, "head": "head", "seed": self.settings.seed, **options})

    def scratch_settings(self, settings: StudySettings, **changes: Any) -> PruningSettings:
        """How methods without a zoo prune θ⁰."""
        return PruningSettings(**{**settings.pruning, "seed": settings.seed, **changes})

    # Parts ------------------------------------------------------------------------------------------------------------

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
        settings, union = self.settings, TaskSpec("generic", self.split.seen)
        if part == "pretrain":
            return self.pretrain()
        if part == "overlap":
            return self.overlap()
        if part == "parent":
            return self.make_parent()
        if part == "generic":
            return self.prune(union, "generic", self.theta0, settings.source_steps, settings.pruning_ratio)
        if part == "generic_parent":
            return self.prune(union, "generic_parent", self.root, settings.source_steps, settings.entry_ratio)
        if part == "generic_zoo":
            return self.prune(union, "generic_zoo", self.theta0, settings.zoo_steps, settings.pruning_ratio)
        if part.startswith("grow-"):
            name, _, index = part.removeprefix("grow-").rpartition("-")
            return self.grow(name, int(index))
        first, _, second = part.partition("--")
        if first.startswith("rank"):
            return self.rank(self.task(second), first.partition("-")[2] or "leep")
        if second:
            measured = not first.startswith("development")
            trials = (*settings.compared(), *settings.varied()) if measured else settings.tried()
            trial = next(trial for trial in trials if trial.name == second)
            return self.compare(self.task(first), trial, test=measured)
        return self.prune(self.task(first), "zoo", self.root, settings.source_steps, settings.entry_ratio)

    def task(self, name: str) -> TaskSpec:
        """The task of a name such as ``source-007``."""
        kind, _, number = name.rpartition("-")
        return self.split.get(kind, int(number))

    def pretrain(self) -> dict[str, Any]:
        """θ⁰: train the backbone on all seen classes, or take the weights that the settings name."""
        settings = self.settings
        options = {"steps": 300, "batch_size": 128, "learning_rate": None, "augment": "crop", **settings.pretrain}
        # Large batches bear a higher rate; what is right depends on the optimizer.
        rate = options["learning_rate"] or 4 * settings.optim.get("learning_rate", 0.05)
        backbone = create_backbone(settings.recipe, pretrained=settings.pretrained, weights=settings.weights)
        if settings.weights is not None or settings.pretrained:
            save_weights(backbone, self.theta0_path, overwrite=True)
            return {"weights": settings.weights or "timm", "steps": 0}
        data = self.datamodule(
            TaskSpec("pretrain", self.split.seen), batch_size=options["batch_size"], augment=options["augment"]
        )
        module = TaskModule.for_task(backbone, data.facts, **{**settings.optim, "learning_rate": rate})
        self.fit(module, data, options["steps"], gradient_clip_val=None)
        accuracy = module.accuracy_on(*data.val_images())
        # A file without a record is of a run stopped in between.
        save_weights(module.backbone, self.theta0_path, overwrite=True)
        return {"classes": len(self.split.seen), "steps": options["steps"], "val_accuracy": accuracy}

    def make_parent(self) -> dict[str, Any]:
        """The zoo's parent: θ⁰ pruned mildly on all source classes, by cutting."""
        parent = {"rounds": self.settings.pruning.get("rounds", 8), "batch_size": self.settings.batch_size}
        parent |= self.settings.parent or {}
        steps, batch_size = parent.pop("steps"), parent.pop("batch_size")
        rate = parent.pop("learning_rate", self.settings.optim.get("learning_rate", 0.05))
        data = self.datamodule(TaskSpec("parent", self.split.seen), batch_size=batch_size)
        pruning = self.scratch_settings(self.settings, **parent)
        options = {**self.settings.optim, "learning_rate": rate}
        module = TaskModule.for_task(self.theta0.build(), data.facts, **options)
        module.initialise_head(data)
        module.take_teacher(module.backbone, data, seed=self.settings.seed)
        cutter = OwnCutter(self.theta0.pruned, self.theta0.cost, pruning)
        module = self._cut(module, data, cutter, pruning, steps, self.settings)
        save_weights(module.backbone, self.folder / "parent.safetensors", overwrite=True)
        return {
            "recipe": recipe_of(module.backbone),
            "steps": steps,
            "val_accuracy": module.accuracy_on(*data.val_images()),
            **self.theta0.size_of(cutter.masks),
        }

    def prune(self, task: TaskSpec, zoo_name: str, origin: Origin, steps: int, ratio: float) -> dict[str, Any]:
        """A zoo entry: ridge head, then iterative pruning in a Trainer."""
        data, zoo = self.datamodule(task), self.folder / zoo_name
        module = TaskModule.for_task(origin.build(), data.facts, **self.settings.optim)
        module.initialise_head(data)
        module.take_teacher(module.backbone, data, seed=self.settings.seed)
        callback = self.pruner(pruning_ratio=ratio, task=data.facts, zoo=zoo)
        name = entry_id(task.name, callback.config(steps))
        if (zoo / "zoo.json").exists() and name in ModelZoo(zoo):
            ModelZoo(zoo).remove(name)  # a stop between entry and record: its seconds and widths are not known
        rounds = RoundMasks(callback)
        self.fit(module, data, steps, callback, rounds)
        return {
            "entry": name,
            "task": task.name,
            "classes": list(task.classes),
            "steps": steps,
            "val_accuracy": module.accuracy_on(*data.val_images()),
            "rounds": rounds.found,
            **origin.size_of(callback.masks),
        }

    def grow(self, name: str, index: int) -> dict[str, Any]:
        """One more entry of a zoo that grows."""
        growth = Growth(**self.settings.growths[name])
        task = self.task(growth.sequence(self.settings.split["sources"])[index])
        data = self.datamodule(task, augment=growth.augment)
        return grow_one(growing_zoo(self.folder, name, self.settings), data, growth, index, self.settings)

    def rank(self, task: TaskSpec, similarity: Any) -> dict[str, Any]:
        """The similarity of every zoo entry to a task; methods that choose neighbours share it, and its seconds."""
        data, zoo = self.datamodule(task), ModelZoo(self.zoo_home / "zoo")
        ready = self.root.groups  # found once in a process: no ranking's seconds
        begin = time.perf_counter()
        ranked = rank_neighbours(
            zoo,
            *data.scoring_images(seed=self.settings.seed),
            backbone=self.root.build(),
            groups=ready,
            similarity=similarity,
            k=None,
            classes=data.facts.classes,
            seed=self.settings.seed,
        )
        seconds, evidence = time.perf_counter() - begin, ranked.evidence
        found = {} if evidence is None else {"evidence": asdict(evidence)}
        return {"seconds": seconds, "similarities": [vars(neighbour) for neighbour in ranked], **found}

    def ranking(self, task: str, similarity: str = "leep") -> dict[str, Any]:
        """The record of a task's ranking."""
        record = read_record(self.folder, rank_part(task, similarity))
        assert record is not None, "rankings are made before the methods that use them"
        return record

    def overlap(self) -> dict[str, Any]:
        """What the masks of all pairs of zoo tasks have in common."""
        path, names = self.settings.superclasses, self.settings.sources
        sources = [record for name in names if (record := read_record(self.folder, name)) is not None]
        superclasses = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        rows = study_overlap(sources, self.root, leep_matrix(self.folder, names), superclasses)
        return {"rows": [asdict(row) for row in rows]}

    def compare(self, task: TaskSpec, trial: Trial, *, test: bool) -> dict[str, Any]:
        """One method on one task: start, fine-tune, measure on test images, or on validation images."""
        settings = self.settings.changed(trial.changes)
        data = self.datamodule(task, batch_size=settings.batch_size, augment=settings.augment)
        method, steps = trial.method, trial.steps
        _ = self.root.cost, self.theta0.cost  # found once in a process: no method's seconds, whichever comes first
        begin = time.perf_counter()
        start = Starts(self, settings).of(method, data)
        module = TaskModule.for_task(start.backbone, data.facts, **settings.optim)
        module.initialise_head(data)
        self._mimic(module, data, settings, start)
        ready = time.perf_counter()
        curve = AccuracyCurve(*(data.test_images() if test else data.val_images()), steps=curve_steps(steps))
        curve.evaluate(module, 0)
        notes = dict(start.notes)
        if METHODS[method].kind == "rounds" or method == "mvp_refine":
            notes |= self._prune_while_training(module, data, trial, settings, curve, start.masks)
        else:
            self.fit(module, data, steps, curve, gradient_clip_val=settings.gradient_clip)
        fitted = time.perf_counter() - ready - curve.seconds
        similarity = settings.vote.get("similarity", "leep")
        searched = METHODS[method].kind == "zoo" and method not in ("random_vote", "all_vote", "grown")
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

    def _mimic(self, module: TaskModule, data: TaskDataModule, settings: StudySettings, start: Start) -> None:
        """Give the module its teacher, if it mimics: what it was cut from, or θ⁰ with ``vote.teacher``."""
        if not module.mimic:
            return
        origin = self.theta0 if settings.vote.get("teacher") == "theta0" else start.origin
        masks = start.masks if origin is start.origin else None
        module.take_teacher(origin.build(), data, origin.groups, masks, settings.seed)

    def cutter_of(
        self, method: str, module: TaskModule, data: TaskDataModule, settings: StudySettings
    ) -> tuple[Cutter, PruningSettings]:
        """How a method without a zoo prunes θ⁰ while it trains: Torch-Pruning's way, or by a criterion of ours."""
        origin = self.theta0
        if method == "torch_pruning":
            pruning = self.scratch_settings(settings)
            return TorchPruningCutter(module, pruning, origin.example, endless(data)), pruning
        pruning = self.scratch_settings(settings, criterion=method)
        return OwnCutter(origin.pruned, origin.cost, pruning), pruning

    def _prune_while_training(
        self,
        module: TaskModule,
        data: TaskDataModule,
        trial: Trial,
        settings: StudySettings,
        curve: AccuracyCurve,
        masks: Masks | None,
    ) -> dict[str, Any]:
        origin = self.theta0
        if trial.method == "mvp_refine":
            assert masks is not None
            origin, steps = self.root, settings.vote.get("refine_after", trial.steps // 4)
            one = {"criterion": "taylor", "rounds": 1, "steps_per_round": steps, "pruning_ratio": settings.entry_ratio}
            pruning = self.scratch_settings(settings, **one)
            present = origin.pruned_of(module.backbone)
            cutter: Cutter = OwnCutter(origin.pruned, origin.cost, pruning, masks, present)
        else:
            cutter, pruning = self.cutter_of(trial.method, module, data, settings)
        module = self._cut(module, data, cutter, pruning, trial.steps, settings, curve)
        if cutter.masks is None:
            small = module.backbone
            return {"parameters": count_parameters(small), "macs": count_macs(small, origin.example)}
        kept = {name: mask.nonzero()[:, 0].tolist() for name, mask in cutter.masks.items()}
        return {"masks": kept, **origin.size_of(cutter.masks)}

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
        return prune_and_cut(
            module,
            data,
            cutter,
            pruning,
            steps,
            clip=settings.gradient_clip,
            precision=settings.precision,
            probe=None if curve is None else lambda step, module: curve.evaluate(module, step),
        )


class RoundMasks(L.Callback):
    """Keeps the masks after each round: the units left, by the fraction of them.

    Args:
        pruning: the callback that prunes; it comes before this one.
    """

    def __init__(self, pruning: MVPCallback) -> None:
        self.pruning = pruning
        self.found: list[dict[str, Any]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if self.pruning.rounds_done > len(self.found):
            masks = self.pruning.masks
            kept = {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()}
            self.found.append({"pruning_ratio": masks.pruning_ratio, "step": self.pruning.step, "kept": kept})


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
