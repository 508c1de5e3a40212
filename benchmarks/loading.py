"""Images a second of our task loader, next to torchvision's `ImageFolder` and torch's `DataLoader`.

JPEG files of 500 × 375, cut to 224 px, by the same number of loading processes and in the same batches, for training
(a random part, mirrored or not) and for evaluation (resized, the centre cut out); normalised float32 at the end. theirs
are `torchvision.transforms.v2` on tensors and the usual transforms of Pillow images. The goal: at least theirs.

Images of 32 px in memory are cut many at once, without loading processes: next to them the same images are sent through
loading processes. That path is there because it is at least twice as fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Outcome, Taken, ratio_summary, shown, summary, table
from jpeg_folders import make_folders
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_mvp.tasks.data import load_imagefolder
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.images import Images
from lightning_mvp.tasks.loader import TaskLoader
from lightning_mvp.tasks.partition import Part

PIXELS, CROP = 224, 0.875
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
SMALL, SMALL_BATCH = 32, 64
TICK = 0.01  # seconds: what `os.times` counts in
OURS, TENSORS, PICTURES = "ours", "torchvision, tensors", "torchvision, Pillow"


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Adds how many files, pixels and processes."""
    parser.add_argument("--workers", type=int, default=2, help="loading processes (default: 2)")
    parser.add_argument("--files", type=int, default=1_000, help="JPEG files (default: 1,000)")
    parser.add_argument("--in-memory", type=int, default=10_000, help="images in memory (default: 10,000)")


def measure(options: argparse.Namespace) -> Outcome:
    """Passes over all images, in turns; the first one of each, which is not timed, warms up caches."""
    files, held = (24, 200) if options.smoke else (options.files, options.in_memory)
    turns = 1 if options.smoke else options.repetitions
    outcome = Outcome([], {})
    with tempfile.TemporaryDirectory() as folder:
        classes = 4 if options.smoke else 10
        make_folders(Path(folder, "images"), classes, files // classes, options.seed)
        for what, augment in (("training, augment=imagenet", "imagenet"), ("evaluation", "none")):
            passes = of_files(Path(folder, "images"), augment, options.workers, options.seed)
            count = files // classes * classes
            outcome.tables.append(_timed(outcome, what, passes, count, turns, options))
    for what, augment in (("32 px in memory, augment=crop_flip", "crop_flip"), ("32 px in memory, evaluation", "none")):
        passes = of_memory(held, augment, options.workers, options.seed)
        outcome.tables.append(_timed(outcome, what, passes, held, turns, options))
    outcome.measured["load"] = os.getloadavg()
    outcome.notes.append(
        f"{options.workers} loading processes, started anew in each pass; batches of {BATCH}, {SMALL_BATCH} in memory. "
        "Ratios turn by turn: by the clock, and by what all processes took of the processors. Load of the machine: "
        f"{os.getloadavg()[0]:.1f}."
    )
    return outcome


def _timed(
    outcome: Outcome, what: str, passes: Mapping[str, Callable[[], object]], images: int, turns: int, options: Any
) -> Any:
    for work in passes.values():
        work()
    taken = in_turns(passes, turns, options.seed)
    made = table(
        what, "loader", "images a second", "ours is faster", "ms of the processors an image", "ours takes less"
    )
    ours = next(iter(passes))
    ratios: dict[str, dict[str, dict[str, float]]] = {"wall": {}, "cpu": {}}
    for name in passes:
        rate = summary([images / seconds for seconds in taken.wall[name]])
        work_ms = summary([1000 * seconds / images for seconds in taken.cpu[name]])
        for clock, seconds in (("wall", taken.wall), ("cpu", taken.cpu)):
            ratios[clock][name] = ratio_summary(seconds[name], seconds[ours])
        told = ["" if name == ours else f"{shown(ratios[clock][name])} ×" for clock in ratios]
        made.add_row(name, shown(rate, 0), told[0], shown(work_ms, 3), told[1])
    outcome.measured[what] = {"images": images, "seconds": taken.wall, "cpu_seconds": taken.cpu, "ratios": ratios}
    return made


def in_turns(passes: Mapping[str, Callable[[], object]], turns: int, seed: int) -> Taken:
    """Time passes in turns of random order; seconds of processors include those of loading processes, which end."""
    rng = np.random.default_rng(seed)
    taken = Taken({name: [] for name in passes}, {name: [] for name in passes})
    for _ in range(turns):
        for name in rng.permutation(list(passes)).tolist():
            gc.collect()  # loading processes of the pass before end with their loader
            wall, before = time.perf_counter(), os.times()
            passes[name]()
            gc.collect()
            taken.wall[name].append(time.perf_counter() - wall)
            spent = sum(os.times()[:4]) - sum(before[:4])
            taken.cpu[name].append(max(spent, TICK))
    return taken


# Files ----------------------------------------------------------------------------------------------------------------


def of_files(root: Path, augment: str, workers: int, seed: int) -> dict[str, Callable[[], object]]:
    """One pass over all files below a folder: ours, and the two of torchvision."""
    source = load_imagefolder(root=root)
    facts = TaskFacts("photographs", source.classes, PIXELS, MEAN, STD, interpolation="bilinear", crop=CROP)
    train = augment != "none"
    ours = partial(TaskLoader, source.train, facts, batch_size=BATCH, train=train, augment=augment, seed=seed)

    def theirs(transform: Any) -> DataLoader:
        data = ImageFolder(str(root), transform)
        return DataLoader(data, BATCH, shuffle=train, num_workers=workers)

    return {
        OURS: lambda: consume(ours(num_workers=workers)),
        TENSORS: lambda: consume(theirs(on_tensors(train))),
        PICTURES: lambda: consume(theirs(on_pictures(train))),
    }


def on_tensors(train: bool) -> Any:
    """The transforms of version 2, on tensors."""
    cut: list[Any] = (
        [v2.RandomResizedCrop(PIXELS, antialias=True), v2.RandomHorizontalFlip()]
        if train
        else [v2.Resize(int(PIXELS / CROP), antialias=True), v2.CenterCrop(PIXELS)]
    )
    return v2.Compose([v2.PILToTensor(), *cut, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def on_pictures(train: bool) -> Any:
    """The usual transforms, on Pillow images."""
    cut: list[Any] = (
        [v1.RandomResizedCrop(PIXELS), v1.RandomHorizontalFlip()]
        if train
        else [v1.Resize(int(PIXELS / CROP)), v1.CenterCrop(PIXELS)]
    )
    return v1.Compose([*cut, v1.ToTensor(), v1.Normalize(MEAN, STD)])


def consume(loader: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Ask for all batches; how many images they were."""
    return sum(len(labels) for _, labels in loader)


# Images in memory -----------------------------------------------------------------------------------------------------


class OneByOne(Images):
    """Images in memory that are opened one by one, as files are."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Tensor:
        return self.images[index]


def of_memory(count: int, augment: str, workers: int, seed: int) -> dict[str, Callable[[], object]]:
    """One pass over small images in memory: cut many at once, and one by one in loading processes or in this one."""
    numbers = np.random.default_rng(seed).integers(0, 256, (count, 3, SMALL, SMALL), np.uint8)
    images, labels = torch.from_numpy(numbers), torch.arange(count) % 10
    facts = TaskFacts("small", tuple(f"class-{c}" for c in range(10)), SMALL, MEAN, STD)

    def loader(held: Tensor | Images, processes: int) -> TaskLoader:
        part = Part(held, labels)
        return TaskLoader(
            part,
            facts,
            batch_size=SMALL_BATCH,
            train=augment != "none",
            augment=augment,
            seed=seed,
            num_workers=processes,
        )

    return {
        "many at once": lambda: consume(loader(images, 0)),
        f"one by one, {workers} processes": lambda: consume(loader(OneByOne(images), workers)),
        "one by one, in this process": lambda: consume(loader(OneByOne(images), 0)),
    }
