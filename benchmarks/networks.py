"""Networks of conf/backbone with random weights, one step of each, and steps timed in turns."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from common import Taken, side_by_side
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from lightning_mvp import TaskFacts, TaskModule, create_backbone, find_groups
from lightning_mvp.training.precision import resolve_precision

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


def said(what: str) -> None:
    """Progress, for whoever waits: all rows take minutes."""
    print(what, file=sys.stderr, flush=True)


@cache
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
    turns = {name: partial(repeated, work, calls[name], counts[name]) for name, work in variants.items()}
    taken = side_by_side(turns, repetitions, seed)
    torch.set_num_threads(THREADS)
    wall, cpu = (
        {name: [value / calls[name] for value in values] for name, values in seconds.items()}
        for seconds in (taken.wall, taken.cpu)
    )
    return Taken(wall, cpu)


def defaults_of(module: TaskModule) -> tuple[str, str]:
    """Layout and precision that the defaults choose on a CPU."""
    layout = next(name for name, last in LAYOUTS.items() if last == (module.layout == torch.channels_last))
    return layout, resolve_precision("auto", "cpu", module)
