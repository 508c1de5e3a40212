"""Training steps by layout, precision and threads; processes; evaluation; and what loader and Trainer take of a step.

Networks have random weights and random images. Variants run in turns, and every figure is a ratio between neighbours in
time. On one thread the process's CPU time is compared, which other processes can't stretch; on an idle machine it is
the wall time. Whatever has two threads or processes is compared by wall time. `NAME, half` is a backbone with half of
the units of each group: what most steps of this package train.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import Outcome, ratio_summary, shown, side_by_side, summary, table
from hydra import compose, initialize_config_dir
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from lightning_mvp import ImageData, TaskDataModule, TaskFacts, TaskModule, create_backbone, find_groups
from lightning_mvp.backbones.features import evaluating
from lightning_mvp.modules.fit import fit_quietly, resolve_precision
from lightning_mvp.tasks.data import Part

HALF = ", half"
BACKBONES = (
    f"resnet_mini_s2{HALF}",
    "resnet_mini_s2",
    "resnet_mini",
    "resnet18",
    f"vit_mini_hybrid{HALF}",
    "vit_mini_hybrid",
    "vit_tiny",
    "efficientnet_lite0",
    "convnext_atto",
)
SMALLEST = BACKBONES[0]
PARALLEL = (SMALLEST, "resnet18", f"vit_mini_hybrid{HALF}")  # of the comparison of processes
ADAMW = ("vit", "deit", "convnext")
LAYOUTS = {"contiguous": False, "channels_last": True}
PRECISIONS = ("32-true", "bf16-mixed")
BATCHES = (32, 128)
CLASSES = 10
PIXELS = 64  # of the backbones that are made for 224
THREADS = 1  # the default of conf/base.yaml
EVALUATED = 500
FIT_STEPS = 100


def add_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--steps-backbones",
        default=";".join(BACKBONES),
        help="separated by ;: of conf/backbone or timm, `NAME, half` for half of the units (default: %(default)s)",
    )
    parser.add_argument(
        "--steps-seconds", type=float, default=0.15, help="that one timing takes about (default: %(default)s)"
    )


def measure(options: argparse.Namespace) -> Outcome:
    names = [name.strip() for name in options.steps_backbones.split(";")]
    batches: Sequence[int] = BATCHES
    repetitions, seconds = options.repetitions, options.steps_seconds
    if options.smoke:
        names, batches, repetitions, seconds = [SMALLEST], (8,), 1, 0.001
    torch.manual_seed(options.seed)
    parts = [
        measure_steps(names, batches, repetitions, seconds, options.seed),
        measure_processes(
            [name for name in names if name in PARALLEL] or names[:1], batches[:1], repetitions, seconds, options.seed
        ),
        measure_evaluation(names, 16 if options.smoke else EVALUATED, repetitions, options.seed),
        measure_loader((32,) if options.smoke else (32, PIXELS), batches, repetitions, seconds, options.seed),
        measure_fit(4 if options.smoke else FIT_STEPS, repetitions, options.seed),
    ]
    torch.set_num_threads(options.threads)
    return Outcome(
        [each for part in parts for each in part.tables],
        {key: value for part in parts for key, value in part.measured.items()},
        [note for part in parts for note in part.notes]
        + ["`*` is what the defaults choose here. Steps on a GPU were not measured."],
    )


def said(what: str) -> None:
    """Progress, for whoever waits: all rows take minutes."""
    print(what, file=sys.stderr, flush=True)


# Networks and steps ---------------------------------------------------------------------------------------------------


def recipe_named(name: str, pixels: int | None = None) -> dict[str, Any]:
    """A recipe of conf/backbone or of a timm model; those made for 224 pixels get :data:`PIXELS`."""
    name, half = name.removesuffix(HALF), name.endswith(HALF)
    folder = Path(str(files("lightning_mvp.conf").joinpath("backbone")))
    recipe: Any = {"model": name, "arguments": {"num_classes": 0}, "replace": {}, "input_size": 224, "in_chans": 3}
    if (folder / f"{name}.yaml").exists():
        with initialize_config_dir(str(folder.absolute()), version_base="1.3"):
            recipe = OmegaConf.to_container(compose(name).recipe)
    if pixels is not None or recipe["input_size"] == 224:
        recipe["input_size"] = pixels or PIXELS
        if name.startswith(("vit", "deit")):
            recipe["arguments"]["img_size"] = recipe["input_size"]
    if half:
        backbone, size = create_backbone(recipe), recipe["input_size"]
        groups = find_groups(backbone, torch.zeros(1, 3, size, size), check=False)
        recipe["kept"] = {group.name: math.ceil(group.size / 2) for group in groups}
    return recipe


def module_named(name: str, pixels: int | None = None, **options: Any) -> TaskModule:
    """A module at a rate so small that nothing grows; random weights."""
    recipe = recipe_named(name, pixels)
    facts = TaskFacts("random", tuple(map(str, range(CLASSES))), recipe["input_size"], (0.5,) * 3, (0.25,) * 3)
    optimizer = "adamw" if name.startswith(ADAMW) else "sgd"
    return TaskModule(recipe, facts.to_dict(), learning_rate=1e-4, optimizer=optimizer, **options)  # type: ignore[arg-type]


def ready_batch(module: TaskModule, size: int) -> tuple[Tensor, Tensor]:
    """Random images in the module's layout."""
    pixels = module.facts.input_size
    images = torch.randn(size, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=module.layout), torch.arange(size) % CLASSES


def stepper(module: TaskModule, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> Callable[[], None]:
    """One optimizer step a call, as the Trainer takes it but for its hooks."""
    optimizer = module.make_optimizer()

    def step() -> None:
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = module(images.contiguous(memory_format=module.layout))
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def same_batch(batch: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield batch


def repeated(work: Callable[[], object], times: int, threads: int | None = None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    for _ in range(times):
        work()


def calibrated(work: Callable[[], object], seconds: float, threads: int = THREADS) -> int:
    """How many calls take about so long; warms up, too."""
    repeated(work, 1, threads)
    start = time.perf_counter()
    work()
    return max(1, round(seconds / (time.perf_counter() - start)))


@dataclass
class Taken:
    """Seconds of one call of each variant, turn by turn: by the clock, and of CPU."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def in_turns(
    variants: Mapping[str, Callable[[], object]],
    repetitions: int,
    seconds: float,
    seed: int,
    threads: Mapping[str, int] | None = None,
) -> Taken:
    """Time variants in turns, each called so often that a turn takes about so many seconds.

    Each has its own number of calls: two threads that wait for each other on a busy machine can be 50 times slower.
    """
    counts = {name: (threads or {}).get(name, THREADS) for name in variants}
    calls = {name: calibrated(work, seconds, counts[name]) for name, work in variants.items()}
    cpu: dict[str, list[float]] = {name: [] for name in variants}

    def turn(name: str) -> None:
        start = time.process_time()
        repeated(variants[name], calls[name], counts[name])
        cpu[name].append((time.process_time() - start) / calls[name])

    wall = side_by_side({name: partial(turn, name) for name in variants}, repetitions, seed)
    torch.set_num_threads(THREADS)
    return Taken({name: [value / calls[name] for value in values] for name, values in wall.items()}, cpu)


def defaults_of(module: TaskModule) -> tuple[str, str]:
    """Layout and precision that the defaults choose on a CPU."""
    layout = next(name for name, last in LAYOUTS.items() if last == (module.layout == torch.channels_last))
    return layout, resolve_precision("auto", "cpu", module)


def measure_steps(names: Sequence[str], batches: Sequence[int], repetitions: int, seconds: float, seed: int) -> Outcome:
    """Layout × precision on one thread, and what the defaults choose on two, for each backbone and batch."""
    kinds = list(product(LAYOUTS, PRECISIONS))
    columns = [", ".join(kind) for kind in kinds]
    two = "the defaults on 2 threads"
    shown_in = table(
        f"A training step on one thread: {columns[0]} in milliseconds, the others as multiples of it (less is faster)",
        "backbone",
        "px",
        "batch",
        f"{columns[0]}: ms",
        *columns[1:],
        f"{two}, of theirs on 1",
    )
    measured = []
    for name, batch in product(names, batches):
        said(f"steps: {name}, batch {batch}")
        modules = {layout: module_named(name, channels_last=last) for layout, last in LAYOUTS.items()}
        chosen = ", ".join(defaults_of(module_named(name)))
        variants = {
            ", ".join(kind): stepper(modules[kind[0]], same_batch(ready_batch(modules[kind[0]], batch)), kind[1])
            for kind in kinds
        }
        taken = in_turns({**variants, two: variants[chosen]}, repetitions, seconds, seed, {two: 2})
        ratios = {column: ratio_summary(taken.cpu[column], taken.cpu[columns[0]], seed) for column in columns}
        ratios[two] = ratio_summary(taken.wall[two], taken.wall[chosen], seed)
        milliseconds = summary([1000 * value for value in taken.cpu[columns[0]]], seed)
        pixels = modules["contiguous"].facts.input_size
        cells = [shown(ratios[column]) + (" *" if column == chosen else "") for column in columns[1:]]
        first = shown(milliseconds, 1) + (" *" if columns[0] == chosen else "")
        shown_in.add_row(name, str(pixels), str(batch), first, *cells, shown(ratios[two]))
        measured.append(
            {
                "backbone": name,
                "pixels": pixels,
                "batch": batch,
                "default": f"{chosen}, {THREADS} thread",
                "wall_seconds": taken.wall,
                "cpu_seconds": taken.cpu,
                "ratios": ratios,
            }
        )
    return Outcome([shown_in], {"steps": measured})


# Processes ------------------------------------------------------------------------------------------------------------


def _work(connection: Connection, name: str, batch: int, threads: int) -> None:
    """A process that takes as many steps as it is told, at the defaults, until it is told None."""
    torch.set_num_threads(threads)
    module = module_named(name)
    step = stepper(module, same_batch(ready_batch(module, batch)), defaults_of(module)[1])
    step()
    connection.send("ready")
    while (times := connection.recv()) is not None:
        repeated(step, times)
        connection.send("done")


@contextlib.contextmanager
def workers(name: str, batch: int, threads: Sequence[int]) -> Iterator[list[Connection]]:
    """Processes that are ready for steps, one for each number of threads."""
    context = multiprocessing.get_context("spawn")
    ours, processes = [], []
    for count in threads:
        own, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, name, batch, count), daemon=True)
        process.start()
        theirs.close()  # a worker that dies is then seen as the end of the pipe
        ours.append(own)
        processes.append(process)
    try:
        for own in ours:
            own.recv()
        yield ours
    finally:
        for own, process in zip(ours, processes, strict=True):
            with contextlib.suppress(OSError):
                own.send(None)
            process.join()


def _together(connections: Sequence[Connection], times: int) -> None:
    for connection in connections:
        connection.send(times)
    for connection in connections:
        connection.recv()


def measure_processes(
    names: Sequence[str], batches: Sequence[int], repetitions: int, seconds: float, seed: int
) -> Outcome:
    """Images per second of two processes with a thread each, and of one with two, next to one process and thread."""
    shown_in = table(
        "Training throughput at the defaults, as a multiple of one process with one thread (more is faster)",
        "backbone",
        "batch",
        "1 × 1: images/s",
        "1 process × 2 threads",
        "2 processes × 1 thread",
    )
    measured = []
    for name, batch in product(names, batches):
        said(f"processes: {name}")
        with workers(name, batch, (1, 1, 2)) as (first, second, two_threads):
            kinds = {"1 x 1": [first], "1 x 2": [two_threads], "2 x 1": [first, second]}
            times = {kind: calibrated(partial(_together, own, 1), 2 * seconds) for kind, own in kinds.items()}
            variants = {kind: partial(_together, own, times[kind]) for kind, own in kinds.items()}
            taken = side_by_side(variants, repetitions, seed)
        images = {kind: [len(kinds[kind]) * times[kind] * batch / s for s in taken[kind]] for kind in kinds}
        per_second = summary(images["1 x 1"], seed)
        gains = {kind: ratio_summary(images[kind], images["1 x 1"], seed) for kind in ("1 x 2", "2 x 1")}
        shown_in.add_row(name, str(batch), shown(per_second, 0), shown(gains["1 x 2"]), shown(gains["2 x 1"]) + " *")
        measured.append(
            {
                "backbone": name,
                "batch": batch,
                "steps_a_timing": times,
                "seconds": taken,
                "images_per_second": per_second,
                "throughput": gains,
            }
        )
    return Outcome([shown_in], {"processes": measured})


# Evaluation -----------------------------------------------------------------------------------------------------------


def _forward(module: TaskModule, images: Tensor, precision: str = "32-true", inference: bool = False) -> None:
    gradients = torch.inference_mode() if inference else torch.no_grad()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with evaluating(module.backbone), gradients, autocast:
        for part in images.split(256):
            module.backbone(part)


def measure_evaluation(names: Sequence[str], count: int, repetitions: int, seed: int) -> Outcome:
    """A forward pass over so many images in eval mode."""
    columns = ("contiguous", "inference_mode", "bf16")
    shown_in = table(
        f"Evaluating {count} images on one thread, and the others' time as a multiple (less is faster)",
        "backbone",
        "channels_last, no_grad *: ms",
        "contiguous",
        "inference_mode",
        "bf16-mixed",
    )
    measured = []
    for name in names:
        said(f"evaluation: {name}")
        last, first = (module_named(name, channels_last=channels_last) for channels_last in (True, False))
        images, rows = (ready_batch(module, count)[0] for module in (last, first))
        variants = {
            "now": partial(_forward, last, images),
            "contiguous": partial(_forward, first, rows),
            "inference_mode": partial(_forward, last, images, inference=True),
            "bf16": partial(_forward, last, images, "bf16-mixed"),
        }
        taken = in_turns(variants, repetitions, 0.0, seed)
        ratios = {column: ratio_summary(taken.cpu[column], taken.cpu["now"], seed) for column in columns}
        now = summary([1000 * value for value in taken.cpu["now"]], seed)
        shown_in.add_row(name, shown(now, 1), *(shown(ratios[column]) for column in columns))
        measured.append(
            {"backbone": name, "images": count, "ratios": ratios, "wall_seconds": taken.wall, "cpu_seconds": taken.cpu}
        )
    return Outcome([shown_in], {"evaluation": measured})


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


def endless(data: TaskDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    while True:
        yield from loader


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
