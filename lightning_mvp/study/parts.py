"""The parts of a comparison: pre-training, zoo entries, and each method on each target. One process runs one part."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.features import reestimate_batch_norm
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.callbacks.mvp import MVPCallback
from lightning_mvp.callbacks.settings import PruningSettings
from lightning_mvp.modules.fit import AccuracyCurve, fit_quietly
from lightning_mvp.modules.task import TaskModule
from lightning_mvp.pruning.importance import Scores, magnitude_importance, taylor_importance
from lightning_mvp.study.records import read_record, write_record
from lightning_mvp.study.settings import StudySettings
from lightning_mvp.tasks.data import ImageData, load_data
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.splits import TaskSpec, TaskSplit, split_tasks
from lightning_mvp.voting.similarity import rank_neighbours
from lightning_mvp.voting.voted import reestimation_batches, voted_backbone
from lightning_mvp.zoo.entry import entry_id
from lightning_mvp.zoo.zoo import ModelZoo

ONESHOT_BATCHES = 10
MORE_STEPS = 10
VOTE_OPTIONS = ("pruning_ratio", "temperature", "missing")


@dataclass(frozen=True)
class Start:
    """Where a method's fine-tuning starts: a backbone, how it is pruned while it trains, and what got it here."""

    backbone: nn.Module
    prune: bool = False
    notes: dict[str, Any] | None = None


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
    def split(self) -> TaskSplit:
        return split_tasks(self.data.classes, **self.settings.split)

    @property
    def theta0_path(self) -> Path:
        return self.folder / "theta0.safetensors"

    def dense(self) -> nn.Module:
        """A fresh copy of the pre-trained backbone."""
        return create_backbone(self.settings.recipe, weights=self.theta0_path)

    @cached_property
    def groups(self) -> Groups:
        return find_groups(self.dense(), self.example)

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self.dense(), self.groups, self.example)

    @cached_property
    def example(self) -> Tensor:
        return torch.zeros(2, *self.data.train.images.shape[1:])

    def datamodule(self, task: TaskSpec, **options: Any) -> TaskDataModule:
        options = {"batch_size": self.settings.batch_size, "augment": self.settings.augment, **options}
        return TaskDataModule(self.data, task.classes, task.name, seed=self.settings.seed, **options)

    def fit(self, module: TaskModule, data: TaskDataModule, steps: int, *callbacks: L.Callback, **options: Any) -> None:
        options = {"gradient_clip_val": self.settings.gradient_clip, **options}
        fit_quietly(module, data, steps, callbacks, precision=self.settings.precision, **options)

    def pruner(self, **options: Any) -> MVPCallback:
        return MVPCallback(**self.settings.pruning, head="head", seed=self.settings.seed, **options)

    # Parts ------------------------------------------------------------------------------------------------------------

    def run(self, part: str) -> None:
        """Do one part, unless its record is there already.

        Args:
            part: ``"pretrain"``, ``"generic"``, ``"source-007"`` or ``"target-003--mvp"``.
        """
        if read_record(self.folder, part) is not None:
            return
        L.seed_everything(self.settings.seed, verbose=False)
        start = time.perf_counter()
        task, _, method = part.partition("--")
        if part == "pretrain":
            record = self.pretrain()
        elif part == "generic":
            record = self.prune(TaskSpec("generic", self.split.seen), self.folder / "generic")
        elif method:
            record = self.compare(self.split.get("target", int(task.rpartition("-")[2])), method)
        else:
            record = self.prune(self.split.get("source", int(task.rpartition("-")[2])), self.folder / "zoo")
        seconds = {"seconds": time.perf_counter() - start} | record
        write_record(self.folder, part, {"part": part, "seed": self.settings.seed, **seconds})

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

    def prune(self, task: TaskSpec, zoo: Path) -> dict[str, Any]:
        """A zoo entry: ridge head, then iterative pruning from θ⁰."""
        data = self.datamodule(task)
        module = TaskModule.for_task(self.dense(), data.facts, **self.settings.optim)
        module.initialise_head(data)
        callback = self.pruner(task=data.facts, zoo=zoo)
        steps = self.settings.source_steps
        name = entry_id(task.name, callback.config(steps))
        if (zoo / "zoo.json").exists() and name in ModelZoo(zoo):
            ModelZoo(zoo).remove(name)  # a stop between entry and record: its seconds and widths are not known
        self.fit(module, data, steps, callback)
        return {
            "entry": name,
            "task": task.name,
            "classes": list(task.classes),
            "steps": steps,
            "val_accuracy": module.accuracy_on(*data.val_images()),
            **self.size_of(callback.masks),
        }

    def compare(self, task: TaskSpec, method: str) -> dict[str, Any]:
        """One method on one target: start, fine-tune, measure on test images."""
        data = self.datamodule(task)
        _ = self.cost  # found once in a process: no method's seconds, whichever comes first
        begin = time.perf_counter()
        start = getattr(self, f"start_{method.removesuffix('_10x')}")(data)
        steps = self.settings.steps * (MORE_STEPS if method.endswith("_10x") else 1)
        module = TaskModule.for_task(start.backbone, data.facts, **self.settings.optim)
        module.initialise_head(data)
        ready = time.perf_counter()
        curve = AccuracyCurve(*data.test_images(), steps=curve_steps(steps))
        pruner = [self.pruner()] if start.prune else []
        self.fit(module, data, steps, *pruner, curve)
        fitted = time.perf_counter() - ready - curve.seconds
        notes = dict(start.notes or {})
        if pruner:
            masks = pruner[0].masks
            notes["masks"] = {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()}
            notes |= self.size_of(masks)
        return {
            "task": task.name,
            "classes": list(task.classes),
            "method": method,
            "steps": steps,
            "accuracy": curve.points[-1][1],
            "curve": curve.points,
            "start_seconds": ready - begin,
            "fit_seconds": fitted,
            **notes,
        }

    def size_of(self, masks: Masks | None) -> dict[str, Any]:
        """Widths, parameters and MACs of the small backbone, beside the dense one's."""
        full = Masks.full(self.groups)
        masks = full if masks is None else masks
        return {
            "widths": dict(masks.kept),
            "parameters": self.cost.parameters(masks),
            "macs": self.cost.macs(masks),
            "dense_parameters": self.cost.parameters(full),
            "dense_macs": self.cost.macs(full),
        }

    # How each method starts -------------------------------------------------------------------------------------------

    def start_dense(self, data: TaskDataModule) -> Start:
        return Start(self._reestimated(self.dense(), data), notes=self.size_of(None))

    def start_taylor(self, data: TaskDataModule) -> Start:
        return Start(self._reestimated(self.dense(), data), prune=True)

    def start_mvp(self, data: TaskDataModule) -> Start:
        return self._vote_of_nearest(data, self.settings.vote.get("neighbours", 8))

    def start_nearest(self, data: TaskDataModule) -> Start:
        return self._vote_of_nearest(data, 1)

    def start_random_vote(self, data: TaskDataModule) -> Start:
        # Other neighbours for each target, the same in every run.
        seed = self.settings.seed + zlib.crc32(data.facts.name.encode())
        options = {**self.settings.vote, "similarity": "random", "temperature": None, "seed": seed}
        return self._vote(data, self.folder / "zoo", **options)

    def start_generic(self, data: TaskDataModule) -> Start:
        return self._vote(data, self.folder / "generic", neighbours=1, similarity="random")

    def start_oneshot_taylor(self, data: TaskDataModule) -> Start:
        backbone = self._reestimated(self.dense(), data)
        module = TaskModule.for_task(backbone, data.facts)
        module.initialise_head(data)
        batches = (batch for batch, _ in zip(self._endless(data), range(ONESHOT_BATCHES), strict=False))
        return self._one_shot(data, backbone, taylor_importance(backbone, module.head, batches, self.groups))

    def start_oneshot_magnitude(self, data: TaskDataModule) -> Start:
        backbone = self.dense()
        return self._one_shot(data, backbone, magnitude_importance(backbone.state_dict(), self.groups))

    def _endless(self, data: TaskDataModule) -> Iterator[tuple[Tensor, Tensor]]:
        loader = data.train_dataloader()
        while True:
            yield from loader

    def _one_shot(self, data: TaskDataModule, backbone: nn.Module, scores: Scores) -> Start:
        pruning = PruningSettings(**self.settings.pruning)
        masks = pruning.choose(scores, Masks.full(self.groups), 1 - pruning.pruning_ratio, self.groups, self.cost)
        small = self._reestimated(shrink(backbone, self.groups, masks), data)
        return Start(small, notes=self.size_of(masks))

    def _reestimated(self, backbone: nn.Module, data: TaskDataModule) -> nn.Module:
        """The backbone with batch-norm statistics of the target, as voted ones have: no method starts without."""
        reestimate_batch_norm(backbone, reestimation_batches(data, self.settings.seed))
        return backbone

    def _vote_of_nearest(self, data: TaskDataModule, neighbours: int) -> Start:
        """The nearest tasks' vote; the similarity of every zoo task is kept, for the pictures."""
        begin = time.perf_counter()
        ranked = rank_neighbours(
            ModelZoo(self.folder / "zoo"),
            *data.scoring_images(seed=self.settings.seed),
            backbone=self.dense(),
            groups=self.groups,
            similarity=self.settings.vote.get("similarity", "leep"),
            k=None,
            classes=data.facts.classes,
            seed=self.settings.seed,
        )
        ranking_seconds = time.perf_counter() - begin
        options = {key: self.settings.vote[key] for key in VOTE_OPTIONS if key in self.settings.vote}
        start = self._vote(data, self.folder / "zoo", neighbours=ranked[:neighbours], **options)
        assert start.notes is not None
        start.notes["stage_seconds"]["rank"] += ranking_seconds
        return replace(start, notes={**start.notes, "similarities": [vars(neighbour) for neighbour in ranked]})

    def _vote(self, data: TaskDataModule, zoo: Path, **options: Any) -> Start:
        options = {"seed": self.settings.seed, **options}
        small, report = voted_backbone(zoo, data, backbone=self.dense(), groups=self.groups, **options)
        notes = self.size_of(report.masks)
        notes["neighbours"] = [vars(neighbour) for neighbour in report.neighbours]
        notes["shares"], notes["stage_seconds"] = report.shares, report.seconds
        return Start(small, notes=notes)


def curve_steps(steps: int) -> list[int]:
    """The steps after which accuracy is recorded: none, then doubling up to the last.

    Example:
        >>> curve_steps(40)
        [0, 5, 10, 20, 40]
    """
    points, step = [steps], steps
    while step > max(2, steps // 8):
        step //= 2
        points.append(step)
    return [0, *sorted(points)]
