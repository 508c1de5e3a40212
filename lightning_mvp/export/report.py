"""What an export says of its model beside the dense one: sizes, files, memory and measured seconds."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.export.measure import Comparison, Spread, compare, forward, training_step
from lightning_mvp.export.memory import HOW_CPU, HOW_CUDA, peak_memory, peak_memory_cuda
from lightning_mvp.export.source import Source


@dataclass(frozen=True)
class Pair:
    """One number of the dense and of the small model."""

    dense: int
    small: int

    @property
    def ratio(self) -> float:
        """How many times smaller the small one is."""
        return self.dense / self.small


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares.

    Args:
        name: of the model.
        device: on which seconds and memory were measured,
        threads: with so many of torch's, and
        memory_batch: so many images at once for memory and for ``rebuilt``.
        parameters: all of them, head included.
        macs: multiply-accumulates of one image.
        peak_memory: bytes of one forward pass, weights included, and
        memory_is: how that was measured.
        files: name → bytes.
        differences: format → largest difference from the model, as a share of its largest output.
        latency: dense and small, one for each batch size; the ratio is the speed-up.
        rebuilt: ``"forward"`` and ``"training"`` (a whole step): the model as it was cut against the same architecture
            built with those widths; the ratio is the seconds of the first over the second's.
    """

    name: str
    device: str
    threads: int
    memory_batch: int
    parameters: Pair
    macs: Pair
    peak_memory: Pair
    memory_is: str
    files: dict[str, int]
    differences: dict[str, float]
    latency: tuple[Comparison, ...]
    rebuilt: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = asdict(self)
        for name in ("parameters", "macs", "peak_memory"):
            values[name]["ratio"] = getattr(self, name).ratio
        for each, found in zip(values["latency"], self.latency, strict=True):
            each["throughput"] = found.throughput
        return {**values, "latency": list(values["latency"]), "torch": torch.__version__}

    def __rich__(self) -> Table:
        table = Table(title=f"{self.name}: dense and small", caption=self._caption(), caption_justify="left")
        for heading, justify in (("", "left"), ("dense", "right"), ("small", "right"), ("dense / small", "right")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        for label, pair in (("parameters", self.parameters), ("MACs", self.macs)):
            table.add_row(label, f"{pair.dense:,}", f"{pair.small:,}", f"{pair.ratio:.2f}")
        memory = self.peak_memory
        table.add_row(
            f"memory, batch {self.memory_batch}", _bytes(memory.dense), _bytes(memory.small), f"{memory.ratio:.2f}"
        )
        table.add_section()
        for found in self.latency:
            _add_times(table, f"latency, batch {found.batch}", found)
            dense, small = found.throughput.values()
            table.add_row("  images a second", f"{dense:,.0f}", f"{small:,.0f}", "")
        table.add_section()
        table.add_row("", "as cut", "rebuilt", "as cut / rebuilt", style="bold")
        for name, found in self.rebuilt.items():
            _add_times(table, f"{name}, batch {found.batch}", found)
        table.add_section()
        for name, size in self.files.items():
            table.add_row(name, "", _bytes(size), "")
        return table

    def _caption(self) -> str:
        return (
            f"Measured on {self.device}, {self.threads} thread(s), float32; medians, in brackets the middle half of "
            f"the rounds. Memory: {self.memory_is}."
        )


def _add_times(table: Table, label: str, found: Comparison) -> None:
    one, two = found.seconds.values()
    ratio = found.ratio
    table.add_row(label, _ms(one), _ms(two), f"{ratio.median:.2f} [{ratio.low:.2f}–{ratio.high:.2f}]")


def _ms(spread: Spread) -> str:
    return f"{1000 * spread.median:.2f} ms [{1000 * spread.low:.2f}–{1000 * spread.high:.2f}]"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def device_name(device: str) -> str:
    """What people call it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"


def measure(
    source: Source,
    dense: nn.Sequential,
    rebuilt: nn.Sequential,
    folders: tuple[Path, Path],
    *,
    files: dict[str, int],
    differences: dict[str, float],
    batch_sizes: Sequence[int],
    seconds: float,
    threads: int,
    device: str,
) -> ExportReport:
    """Everything the report says.

    Args:
        source: the small model.
        dense: the one it was cut from.
        rebuilt: the small one as load.py builds it.
        folders: of the dense and of the small model, with load.py.
        files: name → bytes.
        differences: format → largest difference.
        batch_sizes: for latency; the largest also for memory and training steps.
        seconds: to spend on each measurement.
        threads: torch's.
        device: ``"cpu"`` or ``"cuda"``.
    """
    largest = max(batch_sizes)
    images = source.images(largest)
    macs = Pair(count_macs(dense, images), count_macs(source.model, images))
    if device == "cuda":
        memory = Pair(peak_memory_cuda(dense, images), peak_memory_cuda(source.model, images))
    else:
        memory = Pair(*(peak_memory(folder, images, threads) for folder in folders))
    small = source.model.to(device)
    dense, rebuilt, images = dense.to(device), rebuilt.to(device), images.to(device)
    latency = []
    for batch in batch_sizes:
        runs = {name: forward(model, images[:batch]) for name, model in (("dense", dense), ("small", small))}
        latency.append(compare(runs, batch, seconds, threads))
    twins = {"as cut": small, "rebuilt": rebuilt}
    return ExportReport(
        name=source.name,
        device=device_name(device),
        threads=threads,
        memory_batch=largest,
        parameters=Pair(count_parameters(dense), count_parameters(small)),
        macs=macs,
        peak_memory=memory,
        memory_is=HOW_CUDA if device == "cuda" else HOW_CPU,
        files=files,
        differences=differences,
        latency=tuple(latency),
        rebuilt={
            name: compare({key: how(model, images) for key, model in twins.items()}, largest, seconds, threads)
            for name, how in (("forward", forward), ("training", training_step))
        },
    )
