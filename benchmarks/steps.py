"""Training steps by layout, precision and threads; processes; evaluation; and what loader and Trainer take of a step.

Networks have random weights and random images. Variants run in turns, and every figure is a ratio between neighbours in
time. On one thread the process's CPU time is compared, which other processes can't stretch; on an idle machine it is
the wall time. Whatever has two threads or processes is compared by wall time. `NAME, half` is a backbone with half of
the units of each group: what most steps of this package train.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from multiprocessing.connection import Connection

import torch
from common import Outcome, ratio_summary, shown, side_by_side, summary, table
from fits import measure_fit, measure_loader
from networks import (
    BACKBONES,
    BATCHES,
    EVALUATED,
    FIT_STEPS,
    LAYOUTS,
    PARALLEL,
    PIXELS,
    PRECISIONS,
    SMALLEST,
    THREADS,
    calibrated,
    defaults_of,
    in_turns,
    module_named,
    ready_batch,
    repeated,
    said,
    same_batch,
    stepper,
)
from torch import Tensor

from lightning_mvp import TaskModule
from lightning_mvp.backbones.features import evaluating


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
            taken = side_by_side(variants, repetitions, seed).wall
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
