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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from clock import Clock
from common import Outcome, bootstrap, ratio_summary, shown, side_by_side, summary, table
from filling_runs import BATCH, CLIP, WAYS, Run, Work, mean_iou

from lightning_mvp import MVPCallback
from lightning_mvp.backbones.masks import Keeper
from lightning_mvp.fitting.fit import EntryFacts, fit_quietly, quiet_lightning
from lightning_mvp.pruning import prunable
from lightning_mvp.pruning.criteria import Taylor
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.loader import TaskLoader
from lightning_mvp.training.filling import prune_into_zoo
from lightning_mvp.training.precision import resolve_precision
from lightning_mvp.training.rounds import OwnCutter, make_fabric
from lightning_mvp.zoo.new_entry import ZooTarget

BACKBONES = ("resnet_mini_s2", "vit_mini_hybrid")
RATIOS = (0.5, 0.8, 0.9)
PRECISIONS = ("auto",)


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Tasks are of CIFAR-100 in `--data` (cifar100_train.npz, cifar100_test.npz), else of rendered characters."""
    parser.add_argument(
        "--filling-weights", nargs="*", default=[], metavar="BACKBONE=FILE", help="θ⁰ of each; default: random weights"
    )
    parser.add_argument(
        "--filling-backbones", nargs="*", default=list(BACKBONES), help="of conf/backbone (default: %(default)s)"
    )
    parser.add_argument(
        "--filling-ratios", nargs="*", type=float, default=list(RATIOS), help="of units removed (default: %(default)s)"
    )
    parser.add_argument("--filling-precisions", nargs="*", default=list(PRECISIONS), help="to train in (default: auto)")
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


# Cut against zeroed ---------------------------------------------------------------------------------------------------


def compare(
    work: Work, backbones: Sequence[str], ratios: Sequence[float], precisions: Sequence[str], pairs: int, seed: int
) -> Outcome:
    """Seconds, masks and accuracy of both, task by task."""
    made = table(
        f"Cut against zeroed: {work.steps} steps of {BATCH}, medians of {pairs} tasks [95 % interval]",
        *(
            "backbone, precision, ratio",
            "zeroed, s",
            "cut, s",
            "zeroed / cut",
            "by CPU time",
            "zeroed / again",
            "parameters left",
        ),
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
                cells.append({"backbone": backbone, "precision": precision, "pruning_ratio": ratio, **cell})
                made.add_row(f"{backbone}, {precision}, {ratio}", *_row(cell))
    notes = [
        "IoU is the mean over groups and tasks; accuracy is on test images, its differences are paired: mean of "
        "tasks [95 % interval], in points. `again` starts one rounding apart, and shows how well masks and accuracy "
        "are known.",
    ]
    if not work.weights:
        notes.append("Weights were random, so accuracies are those of untrained networks: give --filling-weights.")
    return Outcome([made], {"cut_against_zeroed": cells}, notes)


def _cell(runs: dict[str, list[Run]], seed: int) -> dict[str, Any]:
    seconds = {way: [run.seconds for run in of_way] for way, of_way in runs.items()}
    cpu = {way: [run.cpu for run in of_way] for way, of_way in runs.items()}
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
        "cpu_seconds": cpu,
        "ratio": ratio_summary(seconds["zeroed"], seconds["cut"], seed),
        "ratio_cpu": ratio_summary(cpu["zeroed"], cpu["cut"], seed),
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
        shown(cell["ratio_cpu"], unit=" ×"),
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
                    (Taylor, "observe", "scores"),
                    (Keeper, "zero", "zeroing"),
                    (Keeper, "zero_gradients", "zeroing"),
                    (OwnCutter, "cut", "rounds"),
                    (Pruner, "prune", "rounds"),
                    (prunable, "find_groups", "groups"),
                ):
                    timed = clock.timed(name, getattr(owner, attribute))
                    stack.enter_context(patch.object(owner, attribute, timed))
                loading = clock.timed_iterator("loader", TaskLoader.__iter__)
                stack.enter_context(patch.object(TaskLoader, "__iter__", loading))
                clock.start()
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
        zoo = Path(folder) / "zoo"
        if way == "cut":
            fabric = make_fabric(precision=precision, network=module)
            settings = PruningSettings(pruning_ratio=ratio)
            prune_into_zoo(module, task, ZooTarget(zoo, task.facts), settings, work.steps, fabric, clip=CLIP)
        else:
            pruning = MVPCallback(pruning_ratio=ratio, head="head", task=task.facts, zoo=zoo)
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
        seconds = side_by_side({name: partial(run, *way) for name, way in ways.items()}, repetitions, work.seed).wall
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
