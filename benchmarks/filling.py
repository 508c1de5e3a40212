"""Filling a zoo: pruning that cuts between rounds beside the same run zeroed at full size; and tasks per hour.

A pair is one task with one seed: the same θ⁰, head, images, rates and rounds, in turns of random order. `again` is the
zeroed run once more from weights that differ in their last bit: what rounding alone does to masks and accuracy. Seconds
are from a model with its head to a small trained one (groups, rounds and steps; no validation, nothing written).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from common import Outcome, bootstrap, ratio_summary, shown, side_by_side, summary, table
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from lightning_mvp import ImageData, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.backbones.masks import Keeper, Masks
from lightning_mvp.callbacks.pruner import Pruner, fractions_kept
from lightning_mvp.callbacks.settings import PruningSettings
from lightning_mvp.modules.cutting import Moments, OwnCutter, make_fabric, prune_and_cut
from lightning_mvp.modules.filling import prune_into_zoo
from lightning_mvp.modules.fit import EntryFacts, fit_quietly, quiet_lightning, resolve_precision
from lightning_mvp.pruning.importance import TaylorScores
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.loader import TaskLoader
from lightning_mvp.tasks.splits import TaskSpec, split_tasks

BACKBONES = ("resnet_mini_s2", "vit_mini_hybrid")
RATIOS = (0.5, 0.8, 0.9)
PRECISIONS = ("32-true", "bf16-mixed")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "resnet": {"learning_rate": 0.05},
    "vit": {"learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.05},
}
CLIP = 1.0
BATCH = 32
FEWER = {"characters": "ABDEGHJK", "per_class_train": 12, "per_class_val": 4, "per_class_test": 6}


def add_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--filling-data", help="a folder of cifar100_train.npz and cifar100_test.npz; default: glyphs")
    parser.add_argument(
        "--filling-weights", nargs="*", default=[], metavar="BACKBONE=FILE", help="θ⁰ of each; default: random weights"
    )
    parser.add_argument(
        "--filling-backbones", nargs="*", default=list(BACKBONES), help="of conf/backbone (default: %(default)s)"
    )
    parser.add_argument(
        "--filling-ratios", nargs="*", type=float, default=list(RATIOS), help="of units removed (default: %(default)s)"
    )
    parser.add_argument(
        "--filling-precisions", nargs="*", default=list(PRECISIONS), help="to train in (default: %(default)s)"
    )
    parser.add_argument("--filling-steps", type=int, default=300, help="of each run (default: %(default)s)")
    parser.add_argument(
        "--filling-zoo", type=int, default=4, help="tasks of each small zoo, for tasks per hour (default: %(default)s)"
    )


def measure(options: argparse.Namespace) -> Outcome:
    work = Work.of(options)
    backbones, ratios, precisions = options.filling_backbones, options.filling_ratios, options.filling_precisions
    pairs, zoos, tasks = options.repetitions, min(options.repetitions, 5), options.filling_zoo
    if options.smoke:
        backbones, ratios, precisions, pairs, zoos, tasks = backbones[:1], [0.8], ["32-true"], 1, 1, 2
    outcomes = [
        compare(work, backbones, ratios, precisions, pairs, options.seed),
        profile(work, backbones, 0.8 if 0.8 in ratios else ratios[-1], precisions[0]),
        tasks_per_hour(
            work, backbones[0], 0.8 if 0.8 in ratios else ratios[-1], precisions[0], tasks, zoos, options.smoke
        ),
    ]
    torch.set_num_threads(options.threads)
    return Outcome(
        [each for outcome in outcomes for each in outcome.tables],
        {key: value for outcome in outcomes for key, value in outcome.measured.items()},
        [note for outcome in outcomes for note in outcome.notes],
    )


# One run --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What is trained on, and from where; travels to other processes.

    Args:
        data: arguments of :func:`load_data`.
        weights: θ⁰ by backbone; others are random.
        steps: of each run.
        classes: of each task.
        augment: of training images.
        seed: of tasks, order and random weights.
    """

    data: dict[str, Any]
    weights: dict[str, str]
    steps: int
    classes: int
    augment: str
    seed: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Work:
        data: dict[str, Any] = {"name": "glyphs", **(FEWER if options.smoke else {})}
        if options.filling_data:
            names = {"train": "cifar100_train.npz", "test": "cifar100_test.npz"}
            data = {"name": "arrays", "root": options.filling_data, **names}
        weights = dict(pair.split("=", 1) for pair in options.filling_weights)
        steps = 8 if options.smoke else options.filling_steps
        few = options.smoke and not options.filling_data
        augment = "crop_flip" if options.filling_data else "crop"
        return cls(data, weights, steps, 3 if few else 10, augment, options.seed)

    def tasks(self, data: ImageData, count: int) -> list[TaskSpec]:
        """Tasks as a zoo has them."""
        options = {"classes_per_task": self.classes, "targets": 1, "held_out_fraction": 0.0}
        return list(split_tasks(data.classes, sources=count, seed=self.seed, **options).source)  # type: ignore[arg-type]

    def datamodule(self, data: ImageData, task: TaskSpec) -> TaskDataModule:
        return TaskDataModule(data, task.classes, task.name, batch_size=BATCH, augment=self.augment, seed=self.seed)

    def module(self, backbone: str, data: TaskDataModule) -> TaskModule:
        """θ⁰ with a ridge head."""
        torch.manual_seed(self.seed)
        theta0 = create_backbone(recipe_named(backbone), weights=self.weights.get(backbone))
        module = TaskModule.for_task(theta0, data.facts, **optimizer_of(backbone))
        module.initialise_head(data)
        return module


def recipe_named(backbone: str) -> dict[str, Any]:
    folder = Path(str(files("lightning_mvp.conf").joinpath("backbone"))).absolute()
    with initialize_config_dir(str(folder), version_base="1.3"):
        return OmegaConf.to_container(compose(backbone).recipe)  # type: ignore[return-value]


def optimizer_of(backbone: str) -> dict[str, Any]:
    return OPTIMIZERS["vit" if backbone.startswith("vit") else "resnet"]


@dataclass
class Run:
    """What one way of pruning came to: masks after the first round and the last, seconds, test accuracy, size left."""

    seconds: float
    accuracy: float
    first: Masks
    last: Masks
    parameters: float


class FirstMasks(L.Callback):
    """Keeps the masks of the first round; stands after MVPCallback."""

    masks: Masks | None = None

    def __init__(self, pruning: MVPCallback) -> None:
        self.pruning = pruning

    def on_train_batch_end(self, *_: Any) -> None:
        if self.masks is None and self.pruning.rounds_done:
            self.masks = self.pruning.masks


class NotingCutter(OwnCutter):
    """Keeps the masks of the first round."""

    first: Masks | None = None

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        smaller = super().cut(module, moments, kept_fraction)
        self.first = self.first or self.masks
        return smaller


def zero(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """By MVPCallback in a Trainer, at full size."""
    start = time.perf_counter()
    pruning = MVPCallback(pruning_ratio=ratio, head="head")
    first = FirstMasks(pruning)
    fit_quietly(module, data, steps, [pruning, first], precision=precision, gradient_clip_val=CLIP)
    small = pruning.small_model()
    seconds = time.perf_counter() - start
    assert first.masks is not None
    left = fractions_kept(pruning.cost, pruning.masks)["params"]
    assert isinstance(small, nn.Sequential)
    module.backbone, module.head = small[0], small[1]  # type: ignore[assignment]
    return Run(seconds, module.accuracy_on(*data.test_images()), first.masks, pruning.masks, left)


def again(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """Zeroed, from weights that differ by one rounding."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 2**-23)
    return zero(module, data, ratio, steps, precision)


def cut(module: TaskModule, data: TaskDataModule, ratio: float, steps: int, precision: str) -> Run:
    """Cutting between rounds."""
    start = time.perf_counter()
    settings = PruningSettings(pruning_ratio=ratio)
    assert isinstance(module.example_input_array, Tensor)
    pruner = Pruner(module.backbone, (module.example_input_array,), settings, keep_features=False)
    options = {name: module.hparams[name] for name in module.own_hparams if name not in ("recipe", "facts")}
    cutter = NotingCutter(pruner.groups, pruner.cost, settings, options)
    small = prune_and_cut(module, data, cutter, settings, steps, clip=CLIP, precision=precision)
    seconds = time.perf_counter() - start
    assert cutter.first is not None
    left = fractions_kept(pruner.cost, cutter.masks)["params"]
    return Run(seconds, small.accuracy_on(*data.test_images()), cutter.first, cutter.masks, left)


WAYS: dict[str, Callable[[TaskModule, TaskDataModule, float, int, str], Run]] = {
    "zeroed": zero,
    "again": again,
    "cut": cut,
}


def mean_iou(one: Masks, other: Masks) -> float:
    return statistics.mean(one.iou(other).values())


# Cut against zeroed ---------------------------------------------------------------------------------------------------


def compare(
    work: Work, backbones: Sequence[str], ratios: Sequence[float], precisions: Sequence[str], pairs: int, seed: int
) -> Outcome:
    """Seconds, masks and accuracy of both, task by task."""
    made = table(
        f"Cut against zeroed: {work.steps} steps of {BATCH}, medians of {pairs} tasks [95 % interval]",
        *("backbone, precision, ratio", "zeroed, s", "cut, s", "zeroed / cut", "zeroed / again", "parameters left"),
        *("IoU, round 1", "IoU", "IoU of again", "accuracy", "cut − zeroed", "again − zeroed"),
    )
    data, rng, cells = load_data(**work.data), np.random.default_rng(seed), []
    for backbone in backbones:
        for precision in precisions:
            for ratio in ratios:
                runs: dict[str, list[Run]] = {way: [] for way in WAYS}
                for task in work.tasks(data, pairs):
                    datamodule = work.datamodule(data, task)
                    for way in rng.permutation(list(WAYS)).tolist():
                        module = work.module(backbone, datamodule)
                        gc.collect()
                        runs[way].append(WAYS[way](module, datamodule, ratio, work.steps, precision))
                cell = _cell(runs, seed)
                cells.append({"backbone": backbone, "precision": precision, "ratio": ratio, **cell})
                made.add_row(f"{backbone}, {precision}, {ratio}", *_row(cell))
    notes = [
        "IoU is the mean over groups and tasks; accuracy is on test images, its differences are paired: mean of tasks "
        "[95 % interval], in points. `again` starts one rounding apart, and shows what masks and accuracy are known to.",
    ]
    if not work.weights:
        notes.append("Weights were random, so accuracies are those of untrained networks: give --filling-weights.")
    return Outcome([made], {"cut_against_zeroed": cells}, notes)


def _cell(runs: dict[str, list[Run]], seed: int) -> dict[str, Any]:
    seconds = {way: [run.seconds for run in of_way] for way, of_way in runs.items()}
    accuracies = {way: [run.accuracy for run in of_way] for way, of_way in runs.items()}

    def overlap(way: str, round_: str) -> float:
        pairs = zip(runs["zeroed"], runs[way], strict=True)
        return statistics.mean(mean_iou(getattr(one, round_), getattr(other, round_)) for one, other in pairs)

    def difference(way: str) -> dict[str, float]:
        points = [100 * (b - a) for a, b in zip(accuracies["zeroed"], accuracies[way], strict=True)]
        low, high = bootstrap(points, statistics.mean, seed)
        return {"median": statistics.mean(points), "low": low, "high": high}

    return {
        "seconds": seconds,
        "accuracies": accuracies,
        "ratio": ratio_summary(seconds["zeroed"], seconds["cut"], seed),
        "ratio_again": ratio_summary(seconds["zeroed"], seconds["again"], seed),
        "parameters_left": statistics.mean(run.parameters for run in runs["cut"]),
        "iou_first_round": overlap("cut", "first"),
        "iou": overlap("cut", "last"),
        "iou_again": overlap("again", "last"),
        "same_widths": all(a.last.kept == b.last.kept for a, b in zip(runs["zeroed"], runs["cut"], strict=True)),
        "difference": difference("cut"),
        "difference_again": difference("again"),
    }


def _row(cell: dict[str, Any]) -> list[str]:
    return [
        f"{statistics.median(cell['seconds']['zeroed']):.1f}",
        f"{statistics.median(cell['seconds']['cut']):.1f}",
        shown(cell["ratio"], unit=" ×"),
        shown(cell["ratio_again"], unit=" ×"),
        f"{cell['parameters_left']:.1%}",
        f"{cell['iou_first_round']:.2f}",
        f"{cell['iou']:.2f}",
        f"{cell['iou_again']:.2f}",
        f"{statistics.mean(cell['accuracies']['zeroed']):.1%}",
        shown(cell["difference"], 1),
        shown(cell["difference_again"], 1),
    ]


# Where the time goes --------------------------------------------------------------------------------------------------


class Clock:
    """Seconds by part, each counted where it is innermost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = ["rest"]
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return call

    def timed_iterator(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def iterate(*arguments: Any) -> Iterator[Any]:
            iterator = function(*arguments)
            while True:
                with self.part(name):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                yield item

        return iterate


def profile(work: Work, backbones: Sequence[str], ratio: float, precision: str) -> Outcome:
    """One run of each way, its seconds by part."""
    parts = ("forward", "backward", "optimizer", "clipping", "scores", "zeroing", "loader", "rounds", "groups", "rest")
    made = table(f"Where the time goes: {work.steps} steps, ratio {ratio}, {precision}", "run", "seconds", *parts)
    data, found = load_data(**work.data), []
    task = work.datamodule(data, work.tasks(data, 1)[0])
    for backbone in backbones:
        for way in ("zeroed", "cut"):
            module = work.module(backbone, task)
            clock = Clock()
            optimizer = type(module.make_optimizer())
            with ExitStack() as stack:
                for owner, attribute, name in (
                    (type(module.backbone), "forward", "forward"),
                    (torch.autograd, "backward", "backward"),
                    (optimizer, "step", "optimizer"),
                    (torch.nn.utils, "clip_grad_norm_", "clipping"),
                    (TaylorScores, "update", "scores"),
                    (Keeper, "zero", "zeroing"),
                    (Keeper, "zero_gradients", "zeroing"),
                    (OwnCutter, "cut", "rounds"),
                    (Pruner, "prune", "rounds"),
                    (Pruner, "__init__", "groups"),
                ):
                    timed = clock.timed(name, getattr(owner, attribute))
                    stack.enter_context(patch.object(owner, attribute, timed))
                loading = clock.timed_iterator("loader", TaskLoader.__iter__)
                stack.enter_context(patch.object(TaskLoader, "__iter__", loading))
                clock._since = time.perf_counter()
                run = WAYS[way](module, task, ratio, work.steps, precision)
            shares = {name: clock.seconds.get(name, 0.0) / run.seconds for name in parts[:-1]}
            shares["rest"] = max(0.0, 1 - sum(shares.values()))
            made.add_row(f"{backbone}, {way}", f"{run.seconds:.1f}", *(f"{shares[name]:.0%}" for name in parts))
            found.append({"backbone": backbone, "way": way, "seconds": run.seconds, "shares": shares})
    return Outcome([made], {"profile": found}, [])


# Tasks per hour -------------------------------------------------------------------------------------------------------


def fill(
    work: Work,
    backbone: str,
    ratio: float,
    precision: str,
    folder: str,
    tasks: Sequence[int],
    threads: int,
    way: str,
    load_each: bool,
) -> int:
    """A worker's share of a zoo: what `mvp-prune` does in one process, job after job; returns how many it did."""
    torch.set_num_threads(threads)
    quiet_lightning()
    data = None
    for index in tasks:
        if data is None or load_each:
            data = load_data(**work.data)
        task = work.datamodule(data, work.tasks(data, max(tasks) + 1)[index])
        module = work.module(backbone, task)
        pruning = MVPCallback(pruning_ratio=ratio, head="head", task=task.facts, zoo=Path(folder) / "zoo")
        if way == "cut":
            prune_into_zoo(module, task, pruning, work.steps, make_fabric(precision=precision), clip=CLIP)
        else:
            callbacks = [EntryFacts(pruning, task), pruning]
            fit_quietly(module, task, work.steps, callbacks, precision=precision, gradient_clip_val=CLIP)
    return len(tasks)


def tasks_per_hour(
    work: Work, backbone: str, ratio: float, precision: str, tasks: int, repetitions: int, smoke: bool
) -> Outcome:
    """The same small zoo filled by one process of two threads, and by two of one."""
    ways: dict[str, tuple[int, str, bool]] = {
        "zeroed, one process of two threads": (1, "zeroed", False),
        "cut, one process of two threads": (1, "cut", False),
        "cut, two processes of one thread": (2, "cut", False),
        "cut, two processes of one thread, data loaded for each task": (2, "cut", True),
    }
    if smoke:  # where other work holds the cores, two threads wait for each other without end
        ways = {name: way for name, way in ways.items() if way[0] == 2}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:

        def run(processes: int, way: str, load_each: bool, count: int = tasks) -> None:
            with tempfile.TemporaryDirectory() as folder:
                arguments = (work, backbone, ratio, precision, folder)
                jobs = [
                    pool.submit(fill, *arguments, range(count)[part::processes], 2 // processes, way, load_each)
                    for part in range(processes)
                ]
                assert sum(job.result() for job in jobs) == count

        run(2, "cut", False, 2)  # imports, and what libraries prepare once
        seconds = side_by_side({name: partial(run, *way) for name, way in ways.items()}, repetitions, work.seed)
    names = list(ways)
    made = table(
        f"Tasks per hour: {backbone}, ratio {ratio}, {precision}, zoos of {tasks}, {repetitions} times",
        *("how", "tasks per hour", "ratio to the first row", "ratio to the row above"),
    )
    found: dict[str, Any] = {
        "tasks": tasks,
        "seconds": seconds,
        "per_hour": {},
        "ratio_to_first": {},
        "ratio_above": {},
    }
    for place, name in enumerate(names):
        found["per_hour"][name] = summary([3600 * tasks / value for value in seconds[name]], work.seed)
        found["ratio_to_first"][name] = ratio_summary(seconds[names[0]], seconds[name], work.seed)
        found["ratio_above"][name] = ratio_summary(seconds[names[max(0, place - 1)]], seconds[name], work.seed)
        made.add_row(
            name,
            shown(found["per_hour"][name], 0),
            shown(found["ratio_to_first"][name], unit=" ×"),
            shown(found["ratio_above"][name], unit=" ×"),
        )
    notes = [f"The default precision on this machine is {resolve_precision('auto')}."]
    return Outcome([made], {"tasks_per_hour": found}, notes)
