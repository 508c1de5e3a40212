"""What `gpu_check.py` checks, one function each: it runs, and says what it found in rows of text and numbers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import ratio_summary, shown, summary
from entry_passes import Passes
from large_zoo import MEAN, STD, make_zoo
from torch.utils.data import DataLoader

from lightning_mvp import (
    ImageData,
    MetaVoteModule,
    MVPCallback,
    TaskDataModule,
    TaskModule,
    create_backbone,
    export_model,
    find_groups,
)
from lightning_mvp.backbones import random_masks, shrink
from lightning_mvp.backbones.passes import images_a_batch
from lightning_mvp.fitting.fit import make_trainer
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.tasks.partition import Part
from lightning_mvp.training.rounds import OwnCutter, make_fabric, prune_and_cut
from lightning_mvp.voting.target import REESTIMATION_BATCHES

CLASSES = 10
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
FIRST_STEPS = 3  # of a fit or a round: kernels are chosen, memory is taken


@dataclass(frozen=True)
class Size:
    """How large the checks are, and where they run.

    Args:
        accelerator: as the Trainer's.
        recipe: of the backbone.
        batch: images of a training step.
        steps: timed steps of a block, and steps between rounds.
        repetitions: of each timing.
        entries: of the zoo that votes.
        images: training images of the task that it votes for.
        scoring: of these decide which entries are near.
        seconds: about so many for each latency of an export.
    """

    accelerator: str
    recipe: dict[str, Any]
    batch: int
    steps: int
    repetitions: int
    entries: int
    images: int
    scoring: int
    seconds: float

    @property
    def device(self) -> str:
        return "cuda" if self.accelerator == "gpu" else self.accelerator

    @property
    def pixels(self) -> int:
        return int(self.recipe["input_size"])


RESNET50 = {"model": "resnet50", "arguments": {"num_classes": 0}, "input_size": 224, "in_chans": 3}
TOY = {
    "model": "resnet18",
    "arguments": {"num_classes": 0, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24]},
    "input_size": 32,
    "in_chans": 3,
}
FULL = Size("gpu", RESNET50, 64, 20, 5, 24, 1000, 500, 0.5)
SMOKE = Size("cpu", TOY, 8, 4, 1, 3, 40, 20, 0.01)

Rows = list[tuple[str, str]]
Found = tuple[Rows, dict[str, Any]]


def task(size: Size) -> TaskDataModule:
    """A task of random images in memory."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        images = torch.randint(256, (count, 3, size.pixels, size.pixels), dtype=torch.uint8, generator=generator)
        return Part(images, torch.arange(count) % CLASSES)

    data = ImageData("random", tuple(f"class-{c}" for c in range(CLASSES)), part(size.images), part(20), part(20))
    return TaskDataModule(
        data, batch_size=size.batch, preprocessing={"input_size": size.pixels, "mean": MEAN, "std": STD}
    )


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


class Block(L.Callback):
    """Milliseconds of a step, as the mean over a block of steps.

    Args:
        first: the block begins after so many steps.
        last: it ends after so many.
        device: that is waited for at both ends, and not in between.
    """

    def __init__(self, first: int, last: int, device: str) -> None:
        self.first, self.last, self.device, self.ms = first, last, device, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in (self.first, self.last):
            synchronise(self.device)
            if trainer.global_step == self.first:
                self._begin = time.perf_counter()
            else:
                self.ms = 1000 * (time.perf_counter() - self._begin) / (self.last - self.first)


def overhead(size: Size) -> Found:
    """A training step in bf16 with MVPCallback, next to one without, in turns: scores are taken, masks are active."""
    round_steps = size.steps + FIRST_STEPS + 2
    labels = torch.arange(size.batch) % CLASSES
    batches = [
        (torch.randn(size.batch, 3, size.pixels, size.pixels, device=size.device), labels.to(size.device))
        for _ in range(4)
    ]
    taken: dict[str, list[float]] = {"plain": [], "MVPCallback": []}
    for repetition in range(size.repetitions):
        for variant in list(taken)[:: 1 if repetition % 2 else -1]:
            module = TaskModule.for_task(create_backbone(size.recipe), task_facts(size))
            begin = round_steps + FIRST_STEPS
            block = Block(begin, begin + size.steps, size.device)  # the second round comes after it
            pruning = [MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=round_steps, head="head")]
            callbacks = [*(pruning if variant == "MVPCallback" else []), block]
            options = {**QUIET, "accelerator": size.accelerator, "precision": "bf16-mixed"}
            steps = 2 * round_steps + 1
            loader = DataLoader([batches[i % 4] for i in range(steps)], batch_size=None)  # type: ignore[arg-type]
            make_trainer(steps, callbacks, **options).fit(module, loader)
            taken[variant].append(block.ms)
    ratio = ratio_summary(taken["MVPCallback"], taken["plain"])
    rows = [(f"{variant}: ms a step of {size.batch}", shown(summary(ms), 2)) for variant, ms in taken.items()]
    return [*rows, ("with MVPCallback ÷ plain (goal: 1.05)", shown(ratio, 3))], {"ms": taken, "ratio": ratio}


def task_facts(size: Size) -> Any:
    """The facts of `task`."""
    return task(Size(**{**vars(size), "images": CLASSES})).facts


def cut_rounds(size: Size) -> Found:
    """Iterative pruning of 80 %: zeroed by MVPCallback in a Trainer, and cut between rounds."""
    data, steps = task(size), 5 * size.steps
    settings = PruningSettings(pruning_ratio=0.8, rounds=3, steps_per_round=size.steps)
    seconds: dict[str, float] = {}
    masks: dict[str, Any] = {}
    for way in ("zeroed", "cut"):
        torch.manual_seed(0)
        module = TaskModule.for_task(create_backbone(size.recipe), data.facts)
        begin = time.perf_counter()
        if way == "zeroed":
            pruning = MVPCallback(pruning_ratio=0.8, rounds=3, steps_per_round=size.steps, head="head")
            options = {**QUIET, "accelerator": size.accelerator, "precision": "bf16-mixed"}
            make_trainer(steps, [pruning], **options).fit(module, datamodule=data)
            masks[way] = pruning.masks
        else:
            prunable = find_prunable(module.backbone, (module.example_input_array,), settings)  # type: ignore[arg-type]
            cutter = OwnCutter(prunable.groups, prunable.cost, settings)
            fabric = make_fabric(size.accelerator, precision="bf16-mixed")
            fabric.launch()
            prune_and_cut(module, data, cutter, settings, steps, fabric=fabric)
            masks[way] = cutter.masks
        synchronise(size.device)
        seconds[way] = time.perf_counter() - begin
    alike = masks["zeroed"].iou(masks["cut"])
    mean = sum(alike.values()) / len(alike)
    rows = [(f"{way}: seconds of {steps} steps", f"{taken:.1f}") for way, taken in seconds.items()]
    rows += [
        ("zeroed ÷ cut, seconds", f"{seconds['zeroed'] / seconds['cut']:.2f}"),
        ("masks of the two, IoU", f"{mean:.2f}"),
    ]
    return rows, {"seconds": seconds, "iou": mean}


def vote(size: Size) -> Found:
    """A vote from the entries of a zoo, on the device, until the first step; its forward passes alone beside it."""
    with tempfile.TemporaryDirectory() as folder:
        zoo, groups = make_zoo(Path(folder, "zoo"), size.recipe, size.entries, 0.5, CLASSES)
        data = task(size)
        passes = Passes(zoo, groups, size.pixels, size.scoring // 2, size.device)
        passes.run()
        if size.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        module = MetaVoteModule.from_zoo(zoo, data, neighbours=8, scoring_images=size.scoring, device=size.device)
        synchronise(size.device)
        seconds = time.perf_counter() - begin
        memory = torch.cuda.max_memory_allocated() if size.device == "cuda" else 0
        passes.run()
    train = len(data.part("train"))
    batch = images_a_batch(size.pixels, size.device)
    needed = passes.needed(min(size.scoring, train), min(train, REESTIMATION_BATCHES * batch), train)
    total = sum(needed.values())
    stages = module.report["seconds"]
    rows = [
        (f"seconds until the first step, {size.entries} entries", f"{seconds:.2f}"),
        ("forward passes alone", f"{total:.2f}"),
        ("÷ these (goal: 1.2)", f"{seconds / total:.2f}"),
        ("stages", ", ".join(f"{stage} {taken:.2f}" for stage, taken in stages.items())),
        ("memory on the device, GB", f"{memory / 1e9:.2f}" if memory else "not measured here"),
    ]
    return rows, {"seconds": seconds, "needed": needed, "stages": stages, "device_bytes": memory}


def one_rank(size: Size) -> Found:
    """DDP with one rank, whose masks are those of a Trainer without a process group."""
    data, masks, backends = task(size), {}, []

    class Backend(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            backends.append(torch.distributed.get_backend())

    for strategy in ("auto", "ddp"):
        torch.manual_seed(0)
        module = TaskModule.for_task(create_backbone(TOY if size.accelerator == "cpu" else size.recipe), data.facts)
        pruning = MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=size.steps, head="head")
        callbacks = [pruning, *([Backend()] if strategy == "ddp" else [])]
        options = {**QUIET, "accelerator": size.accelerator, "devices": 1, "precision": "32-true"}
        make_trainer(3 * size.steps, callbacks, strategy=strategy, **options).fit(module, datamodule=data)
        masks[strategy] = pruning.masks
    torch.distributed.destroy_process_group()
    alike = masks["auto"].iou(masks["ddp"])
    mean = sum(alike.values()) / len(alike)
    return [("backend", backends[0]), ("masks with and without DDP, IoU", f"{mean:.3f}")], {
        "backend": backends[0],
        "iou": mean,
    }


def export(size: Size) -> Found:
    """A small model is exported, and measured on the device next to the dense one."""
    facts = task_facts(size)
    backbone = create_backbone(size.recipe).eval()
    groups = find_groups(backbone, torch.zeros(2, 3, size.pixels, size.pixels), check=False)
    small = TaskModule.for_task(shrink(backbone, groups, random_masks(groups, 0.5, 0)), facts)
    with tempfile.TemporaryDirectory() as folder:
        report = export_model(
            small.to_torch(),
            Path(folder, "model"),
            facts,
            formats=("safetensors", "pt2"),
            batch_sizes=(1, size.batch),
            seconds=size.seconds,
            device=size.device,
        ).to_dict()
    rows = [(f"{name}: largest difference", f"{value:.1e}") for name, value in report["differences"].items()]
    for each in report["latency"]:
        taken = {which: f"{1000 * stats['median']:.2f}" for which, stats in each["seconds"].items()}
        ratio = each["ratio"]["median"]
        rows.append(
            (f"{each['batch']} images: ms, dense and small", f"{taken['dense']}, {taken['small']} ({ratio:.2f} ×)")
        )
    return rows, report


CHECKS: dict[str, Callable[[Size], Found]] = {
    "callback overhead": overhead,
    "cut rounds": cut_rounds,
    "vote": vote,
    "one rank": one_rank,
    "export": export,
}
# Of a Mac: what of the above there is time for, and what it knows.
ON_MPS = ("cut rounds", "vote")
