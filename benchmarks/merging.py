"""Voting and merging at ResNet-50 size, next to the merge that gathered every entry by its index.

Eight neighbours with random weights keep a random half of each group's units, and so does the model they vote for. All
of it is in memory: reading the entries and building the model are not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from common import Outcome, ratio_summary, shown, side_by_side, summary, table
from torch import Tensor

from lightning_mvp import Masks, create_backbone, find_groups
from lightning_mvp.backbones import Groups, random_masks, slice_state
from lightning_mvp.voting.merge import MergeResult, merge
from lightning_mvp.voting.vote import vote, vote_widths

RATIO = 0.5
NEIGHBOURS, SMOKE_NEIGHBOURS = 8, 3
PIXELS = 64  # units and weights don't depend on it
FULL = {"model": "resnet50", "arguments": {"num_classes": 0}, "input_size": PIXELS, "in_chans": 3}
SMOKE = {
    "model": "resnet18",
    "arguments": {"num_classes": 0, "channels": [8, 16, 32, 64], "stem_width": 8},
    "input_size": PIXELS,
    "in_chans": 3,
}
# What merge does with torch, by operation.
OPERATIONS = {
    "gather what is shared": ("index_select",),
    "to float64": ("copy_", "_to_copy", "to"),
    "times the coefficient": ("mul_",),
    "leave out what is lacking": ("index_fill_",),
    "add up": ("index_add_", "scatter_add_", "add_"),  # the one by way of the other where rows are long
    "divide": ("div_",),
    "set up and count": ("fill_", "zeros", "eq", "sum", "where"),
}


@dataclass(frozen=True)
class Case:
    """Neighbours, and the backbone they come from."""

    groups: Groups
    theta0: dict[str, Tensor]
    masks: dict[str, Masks]
    states: dict[str, dict[str, Tensor]]
    importance: dict[str, dict[str, Tensor]]
    coefficients: dict[str, float]


def add_options(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds the number of neighbours."""
    parser.add_argument("--merging-neighbours", type=int, help=f"that vote and are merged (default: {NEIGHBOURS})")


def case_of(recipe: Mapping[str, Any], neighbours: int, seed: int) -> Case:
    """Random neighbours of a backbone with random weights: a function of the seed alone."""
    torch.manual_seed(seed)
    backbone = create_backbone(recipe).eval()
    groups = find_groups(backbone, torch.zeros(1, 3, recipe["input_size"], recipe["input_size"]))
    theta0 = {name: value.clone() for name, value in backbone.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)

    def tuned(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value + int(torch.randint(1, 100, (), generator=generator))
        return value + 0.01 * torch.rand(value.shape, generator=generator)

    masks = {f"task-{j}": random_masks(groups, RATIO, seed + j) for j in range(neighbours)}
    states = {
        name: slice_state({tensor: tuned(value) for tensor, value in theta0.items()}, groups, each)
        for name, each in masks.items()
    }
    importance = {
        name: {group: torch.rand(size, generator=generator) for group, size in groups.sizes.items()} for name in masks
    }
    coefficients = {name: float(torch.rand((), generator=generator)) + 0.1 for name in masks}
    return Case(groups, theta0, masks, states, importance, coefficients)


def voted(case: Case) -> Masks:
    """Widths and vote."""
    return vote(case.masks, vote_widths(case.masks, RATIO), case.coefficients, case.importance)


def merged(case: Case, target: Masks) -> MergeResult:
    """The library's merge."""
    return merge(case.states, case.masks, target, case.groups, case.coefficients, theta0=case.theta0)


# The yardstick --------------------------------------------------------------------------------------------------------


def merged_entry_by_entry(case: Case, target: Masks) -> dict[str, np.ndarray]:
    """How `merge` did it before it was made fast, kept only to compare with: index grids, running means in float64."""
    result: dict[str, np.ndarray] = {}
    for tensor in sorted(case.theta0, key=lambda name: name.endswith("running_var")):
        dense = case.theta0[tensor].numpy()
        goal = _everything(dense.shape, case.groups.kept(tensor, dense.shape, target))
        mean = np.array(dense[np.ix_(*goal)], dtype=np.float64)
        total, count = np.zeros_like(mean), np.zeros(mean.shape, dtype=np.int64)
        for name in sorted(case.states):
            own = _everything(dense.shape, case.groups.kept(tensor, dense.shape, case.masks[name]))
            pairs = [np.intersect1d(a, b, True, return_indices=True)[1:] for a, b in zip(goal, own, strict=True)]
            there, here = np.ix_(*(pair[0] for pair in pairs)), np.ix_(*(pair[1] for pair in pairs))
            value = case.states[name][tensor].numpy()[here].astype(np.float64)
            if tensor.endswith("running_var"):
                sibling = tensor.removesuffix("var") + "mean"
                value += (case.states[name][sibling].numpy()[here].astype(np.float64) - result[sibling][there]) ** 2
            total[there] += case.coefficients[name]
            count[there] += 1
            before, share = mean[there], case.coefficients[name] / total[there]
            mean[there] = np.where(share == 1, value, before + share * (value - before))
        result[tensor] = np.rint(mean) if dense.dtype.kind in "iu" else mean
        np.bincount(np.minimum(count, 2).ravel(), minlength=3)  # the shares
    return {tensor: value.astype(case.theta0[tensor].numpy().dtype) for tensor, value in result.items()}


def _everything(shape: tuple[int, ...], kept: tuple[np.ndarray | None, ...]) -> list[np.ndarray]:
    return [np.arange(size) if index is None else index for size, index in zip(shape, kept, strict=True)]


# What is measured -----------------------------------------------------------------------------------------------------


def largest_difference(state: Mapping[str, Tensor], other: Mapping[str, np.ndarray]) -> float:
    """Between two states of the same tensors, as a fraction of each tensor's largest entry."""
    worst = 0.0
    for name, value in state.items():
        one, two = value.numpy().astype(np.float64), other[name].astype(np.float64)
        worst = max(worst, float(np.abs(one - two).max() / max(np.abs(two).max(), np.finfo(np.float32).tiny)))
    return worst


def profiled(work: Callable[[], object]) -> dict[str, float]:
    """Stage → share of the time; the profiler adds some microseconds to each operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        work()
        whole = time.perf_counter() - start
    own = {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}
    stages = {
        stage: sum(own.pop(f"aten::{operation}", 0.0) for operation in operations)
        for stage, operations in OPERATIONS.items()
    }
    stages["other operations of torch"] = sum(own.values())
    stages["Python and NumPy"] = max(0.0, whole - sum(stages.values()))
    return {stage: seconds / whole for stage, seconds in stages.items()}


def measure(options: argparse.Namespace) -> Outcome:
    """Times vote, merge and the former merge in turns; compares what the two merges give."""
    neighbours = getattr(options, "merging_neighbours", None) or (SMOKE_NEIGHBOURS if options.smoke else NEIGHBOURS)
    recipe: dict[str, Any] = SMOKE if options.smoke else FULL
    case = case_of(recipe, neighbours, options.seed)
    target = voted(case)  # once before it is timed, as the others below
    result, former = merged(case, target), merged_entry_by_entry(case, target)

    works: dict[str, Callable[[], object]] = {
        "vote": partial(voted, case),
        "merge": partial(merged, case, target),
        "merge, former": partial(merged_entry_by_entry, case, target),
    }
    taken = side_by_side(works, 1 if options.smoke else options.repetitions, options.seed)
    seconds, cpu = taken.wall, taken.cpu
    seconds["vote and merge"] = [a + b for a, b in zip(seconds["vote"], seconds["merge"], strict=True)]
    cpu["vote and merge"] = [a + b for a, b in zip(cpu["vote"], cpu["merge"], strict=True)]
    rows = ("vote", "merge", "vote and merge", "merge, former")

    title = f"Voting and merging {neighbours} neighbours of {recipe['model']}, {options.threads} thread(s)"
    shown_table = table(title, "stage", "seconds", "of the processor", "times `merge`")
    for name in rows:
        ratio = ratio_summary(seconds[name], seconds["merge"], options.seed)
        shown_table.add_row(
            name,
            shown(summary(seconds[name]), 3),
            shown(summary(cpu[name]), 3),
            shown(ratio, 2) if name != "merge" else "",
        )
    shares = profiled(works["merge"])
    difference = largest_difference(result.state, former)
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    size = sum(value.numel() for value in result.state.values())
    notes = [
        f"{size / 1e6:.1f} million entries from {neighbours} neighbours; the dense model has "
        f"{sum(value.numel() for value in case.theta0.values()) / 1e6:.1f} million. Both merges agree to "
        f"{difference:.1e} of each tensor's largest entry.",
        "Where merge's time goes: " + ", ".join(f"{part} {share:.0%}" for part, share in ordered) + ".",
    ]
    measured = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "summary": {name: summary(seconds[name], options.seed) for name in rows},
        "cpu_summary": {name: summary(cpu[name], options.seed) for name in rows},
        "times_faster": ratio_summary(seconds["merge, former"], seconds["merge"], options.seed),
        "median_of_vote_and_merge": statistics.median(seconds["vote and merge"]),
        "largest_relative_difference": difference,
        "profile": shares,
        "shares": result.shares,
        "entries": size,
        "neighbours": neighbours,
        "recipe": recipe,
    }
    return Outcome([shown_table], measured, notes)
