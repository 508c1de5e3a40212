"""Which timm models can be pruned, how exactly, and what that saves: the table in docs/coverage.md.

    python benchmarks/coverage.py             # all models, about five minutes on one core; writes the table
    python benchmarks/coverage.py --fast      # those that tests repeat, on screen only
    python benchmarks/coverage.py --models resnet50 dla34 --json coverage.json
    python benchmarks/coverage.py --families  # other models and libraries, each family of timm; writes that table

Any timm model can be named, ``torchvision:NAME``, ``features:NAME`` (timm's, all its feature maps) and the small models
of ``transformers`` (``pip install transformers``). One model at a time is built, with random weights: nothing is
downloaded. It is checked with small images and measured with those of 224 pixels. Only a run over all models is written
into the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run, its neighbours are found

import timm
import torch
from coverage_models import FAST, MODELS, OTHERS, SEED, built, smallest_of_each_family
from coverage_tables import (
    BEGIN,
    DOCUMENT,
    END,
    FAMILIES_BEGIN,
    FAMILIES_END,
    FULL_SIZE,
    RATIOS,
    TRAINING_BATCH,
    TURNS,
    Row,
    Structure,
    markdown,
    measured_cells,
    reasons,
    structure_cells,
    with_table,
)
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lightning_mvp import find_groups
from lightning_mvp.backbones import CostModel, Groups, Masks, check_exact, random_masks, shrink
from lightning_mvp.backbones.copies import tensors_in
from lightning_mvp.errors import SelfCheckError

LARGEST = 100_000_000  # parameters of a model in the second table: its self-check needs a few copies in float64
LARGEST_SIDE = 512  # pixels of its images


def describe(model: str, backbone: nn.Module, groups: Groups, example: Tensor) -> Structure:
    """Groups by kind, what is left out, and the shares of parameters and MACs that remain."""
    cost, full = CostModel(backbone, groups, example), Masks.full(groups)
    masks = {str(ratio): random_masks(groups, ratio, SEED) for ratio in RATIOS}
    kinds = Counter(group.kind for group in groups)
    return Structure(
        model=model,
        groups={kind: kinds[kind] for kind in ("conv", "residual", "mlp", "heads") if kinds[kind]},
        units=sum(groups.sizes.values()),
        left_out=list(groups.skipped),
        parameters={ratio: cost.parameters(mask) / cost.parameters(full) for ratio, mask in masks.items()},
        macs={ratio: cost.macs(mask) / cost.macs(full) for ratio, mask in masks.items()},
    )


def structure(model: str) -> Structure:
    """What the table says of a model that does not depend on the machine; where it is refused, only why."""
    try:
        exact = find_groups(*built(model))
    except ValueError as refusal:
        return Structure(model, refusal=str(refusal))
    backbone, example = built(model, FULL_SIZE)
    groups = find_groups(backbone, example, check=False).select(include=exact.names)
    return describe(model, backbone, Groups(groups, exact.skipped), example)


def seconds(work: Callable[[], Any], at_least: float = 0.0) -> float:
    """Median time of a call, on one thread, after a warm-up."""
    return float(Timer("work()", globals={"work": work}, num_threads=1).blocked_autorange(min_run_time=at_least).median)


def forward_pass(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    """One image's, in eval mode."""

    def forward() -> None:
        with torch.inference_mode():
            model(example)

    model.eval()
    return forward


def training_step(backbone: nn.Module, example: Tensor) -> Callable[[], Any]:
    """One step of SGD on a batch of random images."""
    images = torch.randn(TRAINING_BATCH, *example.shape[1:])
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-6)
    backbone.train()

    def step() -> None:
        optimizer.zero_grad()
        torch.stack([output.square().mean() for output in tensors_in(backbone(images))]).sum().backward()
        optimizer.step()

    return step


def check(row: Row) -> None:
    """Find the groups, check them at both ratios, and take the times of that and of a training step.

    Raises:
        SelfCheckError: a group is not exact.
    """
    backbone, example = built(row.model)
    row.check_size = example.shape[-1]
    start = time.perf_counter()
    find_groups(backbone, example, check=False)
    row.find_seconds = time.perf_counter() - start
    groups = find_groups(backbone, example)
    start = time.perf_counter()
    row.difference = max(check_exact(backbone, groups, random_masks(groups, ratio, SEED), example) for ratio in RATIOS)
    row.check_seconds = (time.perf_counter() - start) / len(RATIOS)
    row.step_seconds = seconds(training_step(backbone, example))


def time_passes(row: Row, at_least: float) -> None:
    """Latency of the dense and the small models, ``at_least`` seconds spent on each.

    They take turns, and each turn gives a ratio: whatever else the machine does slows both.
    """
    backbone, example = built(row.model, FULL_SIZE)
    groups = find_groups(backbone, example, check=False).select(include=find_groups(*built(row.model)).names)
    models = {"dense": backbone}
    models |= {str(ratio): shrink(backbone, groups, random_masks(groups, ratio, SEED)) for ratio in RATIOS}
    turns = [
        {name: seconds(forward_pass(model, example), at_least / TURNS) for name, model in models.items()}
        for _ in range(TURNS)
    ]
    row.latency_ms = statistics.median(turn["dense"] for turn in turns) * 1e3
    row.latency = {str(r): statistics.median(turn[str(r)] / turn["dense"] for turn in turns) for r in RATIOS}


def measure(model: str, at_least: float) -> Row:
    """A model's row; where it is refused, the row says why and nothing else."""
    row = Row(**asdict(structure(model)))
    if not row.refusal:
        try:
            check(row)
        except SelfCheckError as refusal:
            return Row(model, refusal=str(refusal))
        time_passes(row, at_least)
    return row


def light_row(about: str, model: str, backbone: nn.Module, example: Tensor) -> str:
    """A row of the second table: the share of parameters in groups, what is left out, seconds."""
    start = time.perf_counter()
    try:
        groups = find_groups(backbone, example)
    except ValueError as refusal:
        cells = ["refused", "0 %", reasons(Structure(model, refusal=str(refusal)))[0][:160]]
    else:
        kinds = Counter(group.kind for group in groups)
        owned = {member.tensor for group in groups for member in group.members}
        sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
        share = sum(size for name, size in sizes.items() if name in owned) / sum(sizes.values())
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        cells = [told, f"{100 * share:.0f} %", str(len(groups.skipped))]
    return f"| {about} | `{model}` | {' | '.join(cells)} | {time.perf_counter() - start:.1f} |"


def families() -> str:
    """The smallest model of each module of timm, then more of its models, other libraries' and encoders."""
    lines = ["| module | model | groups | parameters in groups | left out | seconds |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: |")

    def add(about: str, model: str, backbone: nn.Module, example: Tensor) -> None:
        lines.append(light_row(about, model, backbone, example))
        print(lines[-1], flush=True)
        gc.collect()  # modules refer to each other

    for model in OTHERS:
        add("listed" if ":" not in model else model.split(":")[0], model.split(":")[-1], *built(model))
    for family, model, parameters in smallest_of_each_family():
        if parameters > LARGEST:
            lines.append(f"| {family} | `{model}` | not run: {parameters / 1e6:.0f} M parameters | | | |")
            continue
        backbone, example = timm.create_model(model, num_classes=0), torch.randn(2, 3, 64, 64)
        try:
            backbone(example)
        except Exception:  # its images have a size of their own
            example = torch.randn(2, *timm.get_pretrained_cfg(model).input_size)
        if example.shape[-1] > LARGEST_SIDE:
            lines.append(f"| {family} | `{model}` | not run: images of {example.shape[-1]} pixels | | | |")
            continue
        add(family, model, backbone, example)
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help="timm names; shown on screen (default: all of the table)")
    parser.add_argument("--families", action="store_true", help="the second table: other models and all families")
    parser.add_argument("--fast", action="store_true", help="only the models that tests repeat; shown on screen")
    parser.add_argument("--min-run-time", type=float, default=1.0, help="seconds to time a forward pass (default: 1)")
    parser.add_argument("--json", type=Path, help="write every figure and note here")
    options = parser.parse_args(arguments)
    for model in options.models or ():
        if ":" not in model and not timm.is_model(model):
            parser.error(f"Expected --models to be names that timm {timm.__version__} knows, but got {model!r}.")
    return options


def write_table(table: str, begin: str, end: str) -> None:
    """Put a table into docs/coverage.md, between its markers."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), table, begin, end), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.families:
        write_table(families(), FAMILIES_BEGIN, FAMILIES_END)
        return
    rows = []
    for model in options.models or (FAST if options.fast else MODELS):
        rows.append(measure(model, options.min_run_time))
        print(" | ".join([*structure_cells(rows[-1]), *measured_cells(rows[-1])]), flush=True)
        for note in reasons(rows[-1]):
            print(f"    {note}", flush=True)
        gc.collect()  # modules refer to each other
    if options.json:
        versions = {name: version(name) for name in ("lightning-mvp", "torch", "timm", "torch-pruning")}
        report = {"versions": versions, "python": platform.python_version(), "models": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not options.models and not options.fast:
        write_table(markdown(rows), BEGIN, END)
        print(f"Wrote the table in docs/{DOCUMENT.name}.")


if __name__ == "__main__":
    main()
