"""What the benchmarks of `run.py` share: how times are taken, intervals, tables, and the JSON that is written."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

PACKAGES = ("lightning-mvp", "lightning", "torch", "torch-pruning", "timm", "numpy")


@dataclass
class Outcome:
    """What a benchmark found.

    Args:
        tables: for people, see `table`.
        measured: every single measurement and the summary, plain JSON types.
        notes: sentences below the tables.
    """

    tables: list[Table]
    measured: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def table(title: str, *columns: str) -> Table:
    """A table that prints as Markdown; the first column is text, the others are numbers."""
    made = Table(title=title, title_justify="left", box=MARKDOWN)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", no_wrap=True)
    return made


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call; garbage of earlier calls is collected before."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Taken:
    """Seconds of each variant, turn by turn: by the clock on the wall, and of this process on its CPUs."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def side_by_side(variants: Mapping[str, Callable[[], object]], repetitions: int, seed: int = 0) -> Taken:
    """Time variants in turns of random order, so that whatever else the machine does hits all alike."""
    rng = np.random.default_rng(seed)
    taken = Taken({name: [] for name in variants}, {name: [] for name in variants})
    for _ in range(repetitions):
        for name in rng.permutation(list(variants)).tolist():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            taken.wall[name].append(time.perf_counter() - wall)
            taken.cpu[name].append(time.process_time() - cpu)
    return taken


def bootstrap(
    values: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float] = statistics.median,
    seed: int = 0,
    samples: int = 2000,
) -> tuple[float, float]:
    """95 % interval of a statistic over resampled values (numbers, or anything that the statistic takes)."""
    if len(values) < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = [statistic([values[i] for i in rng.integers(len(values), size=len(values))]) for _ in range(samples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def summary(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median and its 95 % interval, for JSON."""
    low, high = bootstrap(values, seed=seed)
    return {"median": statistics.median(values), "low": low, "high": high}


def shown(stats: Mapping[str, float], digits: int = 2, unit: str = "") -> str:
    """ "1.23 [1.10, 1.31]" of a `summary`; without an interval where one value has none."""
    text = f"{stats['median']:,.{digits}f}{unit}"
    if np.isnan(stats["low"]):
        return text
    return f"{text} [{stats['low']:,.{digits}f}, {stats['high']:,.{digits}f}]"


def ratio_summary(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> dict[str, float]:
    """How many times longer `slow` takes, turn by turn: the median of the ratios and its interval."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)], seed)


def shared_options(parser: argparse.ArgumentParser) -> None:
    """Options that all benchmarks have."""
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each timing (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--study", type=Path, nargs="*", default=[], help="folders of studies that `mvp-compare` left")
    parser.add_argument("--data", type=Path, help="the folder of their data (default: as they say themselves)")
    parser.add_argument("--targets", type=int, default=8, help="new tasks of each study (default: 8)")
    parser.add_argument("--smoke", action="store_true", help="does everything once, small; its figures mean nothing")
    parser.add_argument("--json", type=Path, help="a folder; NAME.json there gets every measurement")


def write_json(folder: Path, name: str, options: argparse.Namespace, outcome: Outcome) -> Path:
    """Settings, versions, the kind of machine and every measurement."""
    # Paths stay out: they say whose machine it was.
    told = {key: value for key, value in vars(options).items() if key not in ("study", "data", "json")}
    settings = {key: value for key, value in told.items() if not isinstance(value, Path)}
    settings["study"] = [study.name for study in options.study]
    report = {
        "benchmark": name,
        "settings": settings,
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
        "results": outcome.measured,
        "notes": outcome.notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """What of the machine decides speeds; nothing that says whose it is."""
    amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return {"cores": os.cpu_count(), "cpu": torch.backends.cpu.get_cpu_capability(), "amx": amx}


def print_outcome(outcome: Outcome) -> None:
    """Tables and notes on the screen, ready for a README."""
    console = Console(width=400, highlight=False)  # no column is cut off
    for each in outcome.tables:
        console.print(each, markup=False)
        console.print()
    for note in outcome.notes:
        console.print(note, markup=False, soft_wrap=True)
