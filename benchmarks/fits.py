"""What the loader takes of a step, and a Trainer of a fit: two parts of `steps`."""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import lightning as L
import torch
from common import Outcome, ratio_summary, shown, side_by_side, summary, table
from lightning.pytorch.profilers import SimpleProfiler
from networks import (
    CLASSES,
    SMALLEST,
    THREADS,
    defaults_of,
    in_turns,
    module_named,
    ready_batch,
    said,
    same_batch,
    stepper,
)
from torch import Tensor
from torch.nn import functional as F

from lightning_mvp import ImageData, TaskDataModule, TaskModule
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.tasks.data import Part
from lightning_mvp.training.rounds import endless

# Loader ---------------------------------------------------------------------------------------------------------------


def random_task(pixels: int, batch: int, images: int, augment: str = "crop_flip") -> TaskDataModule:
    """Random images as a task: their numbers cost what any other would."""
    generator = torch.Generator().manual_seed(0)
    part = Part(
        torch.randint(256, (images, 3, pixels, pixels), dtype=torch.uint8, generator=generator),
        torch.arange(images) % CLASSES,
    )
    data = ImageData("random", tuple(map(str, range(CLASSES))), part, part, part)
    return TaskDataModule(data, batch_size=batch, augment=augment)


def measure_loader(
    sizes: Sequence[int], batches: Sequence[int], repetitions: int, seconds: float, seed: int
) -> Outcome:
    """A batch from the loader next to a step of the smallest net that is trained, on a ready batch."""
    shown_in = table(
        f"The loader, next to a step of {SMALLEST} at the defaults, one thread",
        "pixels",
        "batch",
        "augment",
        "batch from the loader: ms",
        "step on a ready batch: ms",
        "the loader's share, %",
    )
    measured = []
    for pixels, batch, augment in product(sizes, batches, ("none", "crop_flip")):
        said(f"loader: {pixels} pixels, batch {batch}")
        module = module_named(SMALLEST, pixels)
        step = stepper(module, same_batch(ready_batch(module, batch)), defaults_of(module)[1])
        load = partial(next, endless(random_task(pixels, batch, 10 * batch, augment)))
        taken = in_turns({"loader": load, "step": step}, repetitions, seconds, seed)
        share = summary([a / (a + b) for a, b in zip(taken.cpu["loader"], taken.cpu["step"], strict=True)], seed)
        own, steps = (summary([1000 * value for value in taken.cpu[part]], seed) for part in ("loader", "step"))
        percent = {key: 100 * value for key, value in share.items()}
        shown_in.add_row(str(pixels), str(batch), augment, shown(own, 3), shown(steps, 2), shown(percent, 1))
        measured.append(
            {
                "pixels": pixels,
                "batch": batch,
                "augment": augment,
                "share": share,
                "wall_seconds": taken.wall,
                "cpu_seconds": taken.cpu,
            }
        )
    return Outcome([shown_in], {"loader": measured})


# A whole fit ----------------------------------------------------------------------------------------------------------


class Silent(TaskModule):
    """Neither metric nor log."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images.contiguous(memory_format=self.layout)).float(), labels)


class StepCPU(L.Callback):
    """CPU seconds from each step's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.ends)]


def _bare(module: TaskModule, data: TaskDataModule, steps: int) -> float:
    step = stepper(module, endless(data), defaults_of(module)[1])
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _fit(module: TaskModule, data: TaskDataModule, steps: int, **options: Any) -> float:
    timer = StepCPU()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit_quietly(module, data, steps, [timer], **options)
    return statistics.median(timer.seconds)


def measure_fit(steps: int, repetitions: int, seed: int) -> Outcome:
    """What the Trainer adds to a bare loop of the same steps, and where a step of a fit goes."""
    said("fit")
    batch = 32
    data = random_task(32, batch, 10 * batch)
    found: dict[str, list[float]] = {}

    def noted(name: str, run: Callable[[TaskModule, TaskDataModule, int], float], module: TaskModule) -> None:
        found.setdefault(name, []).append(run(module, data, steps))

    module = module_named(SMALLEST)
    silent = Silent(module.hparams["recipe"], module.hparams["facts"], learning_rate=1e-4)
    variants: Mapping[str, Callable[[], None]] = {
        name: partial(noted, name, run, own)
        for name, run, own in (
            ("bare loop", _bare, module),
            ("fit_quietly", _fit, module),
            ("fit_quietly without metric and log", _fit, silent),
            ("with gradient clipping", partial(_fit, gradient_clip_val=1.0), module),
            ("with a progress bar", partial(_fit, enable_progress_bar=True), module),
        )
    }
    torch.set_num_threads(THREADS)
    side_by_side(variants, repetitions, seed)
    bare = found["bare loop"]
    shown_in = table(
        f"A step of a fit of {steps} steps: {SMALLEST}, batch {batch}, the loader's batches, one thread",
        "",
        "ms a step (median)",
        "next to the bare loop",
    )
    ratios = {name: ratio_summary(seconds, bare, seed) for name, seconds in found.items()}
    for name in variants:
        seconds = found[name]
        milliseconds = summary([1000 * value for value in seconds], seed)
        shown_in.add_row(name, shown(milliseconds), shown(ratios[name]))
    profile = profiled(module, data, steps)
    whole = profile["run_training_epoch"]
    largest = sorted(profile.items(), key=lambda item: -item[1])
    notes = [
        "Where a fit goes, by Lightning's profiler (parts contain one another): "
        + "; ".join(f"{name} {seconds / whole:.1%}" for name, seconds in largest if seconds > 0.005 * whole)
        + ". Fetching batches is `train_dataloader_next`."
    ]
    return Outcome([shown_in], {"fit": {"step_seconds": found, "ratios": ratios, "profile": profile}}, notes)


def profiled(module: TaskModule, data: TaskDataModule, steps: int) -> dict[str, float]:
    """Seconds of each of Lightning's actions in a fit, under short names."""
    profiler = SimpleProfiler()
    fit_quietly(module, data, steps, profiler=profiler)
    seconds: dict[str, float] = {}
    for action, durations in profiler.recorded_durations.items():
        name = action.replace("[LightningModule]", "").replace("[Callback]", "").split("]")[-1].lstrip(".")
        owner = action.split("]")[0].lstrip("[") if "]" in action else ""
        short = name if owner.startswith(("_Training", "Strategy")) or not owner else action
        seconds[short] = seconds.get(short, 0.0) + sum(durations)
    return seconds
