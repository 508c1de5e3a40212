"""The report of an export: sizes, files, memory and measured seconds of the small model and of the dense one."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.filesize import decimal
from rich.table import Table

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.export.measure import Comparison, compare, forward
from lightning_mvp.export.memory import HOW_CPU, HOW_CUDA, peak_memory, peak_memory_cuda
from lightning_mvp.export.source import Source
from lightning_mvp.words import counted


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
        name: The model's name.
        device: The device on which seconds and memory were measured.
        threads: The number of torch's threads while they were measured.
        memory_batch: The number of images of the forward pass whose memory was measured.
        parameters: The number of parameters, head included.
        macs: The multiply-accumulates of one image.
        peak_memory: The bytes of one forward pass, weights included.
        memory_is: How memory was measured, in words.
        files: The bytes of each file that holds the model or loads it, by name.
        differences: The largest difference from the model by format, as a share of the model's largest output.
        latency: The seconds of the dense and the small model, one comparison for each batch size; its ratio is the
            speed-up.
        accuracy: The small model's accuracy by name, such as ``test_accuracy``, where it is known from before.
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
    accuracy: dict[str, float] = field(default_factory=dict)

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
            f"memory, batch {self.memory_batch}", decimal(memory.dense), decimal(memory.small), f"{memory.ratio:.2f}"
        )
        table.add_section()
        for found in self.latency:
            one, two = (
                f"{1000 * spread.median:.2f} ms [{1000 * spread.low:.2f}–{1000 * spread.high:.2f}]"
                for spread in found.seconds.values()
            )
            ratio = found.ratio
            speedup = f"{ratio.median:.2f} [{ratio.low:.2f}–{ratio.high:.2f}]"
            table.add_row(f"latency, batch {found.batch}", one, two, speedup)
            dense, small = found.throughput.values()
            table.add_row("  images a second", f"{dense:,.0f}", f"{small:,.0f}", "")
        table.add_section()
        for name, value in self.accuracy.items():
            table.add_row(name.replace("_", " "), "", f"{value:.1%}", "")
        for name, size in self.files.items():
            table.add_row(name, "", decimal(size), "")
        return table

    def _caption(self) -> str:
        return (
            f"Measured on {self.device}, {counted(self.threads, 'thread')}, float32; medians, in brackets the "
            f"middle half of the rounds. Memory: {self.memory_is}."
        )


def measure(
    source: Source,
    *,
    files: dict[str, int],
    differences: dict[str, float],
    batch_sizes: Sequence[int],
    seconds: float,
    threads: int,
    device: str,
) -> ExportReport:
    """Measure a small model beside the same architecture at full width.

    Args:
        source: The small model.
        files: The bytes of each file that holds the model or loads it, by name.
        differences: The largest difference by format.
        batch_sizes: The numbers of images for latency; memory is measured at the largest.
        seconds: The time to spend on each measurement.
        threads: The number of torch's threads.
        device: ``"cpu"`` or ``"cuda"``.
    """
    images, dense, small = source.images(max(batch_sizes)), source.dense(), source.model
    peak = peak_memory_cuda if device == "cuda" else peak_memory
    macs = Pair(count_macs(dense, images), count_macs(small, images))
    memory = Pair(peak(dense, images), peak(small, images))
    images = images.to(device)
    models = {"dense": dense.to(device), "small": small.to(device)}
    return ExportReport(
        name=source.name,
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        threads=threads,
        memory_batch=len(images),
        parameters=Pair(count_parameters(dense), count_parameters(small)),
        macs=macs,
        peak_memory=memory,
        memory_is=HOW_CUDA if device == "cuda" else HOW_CPU,
        files=files,
        differences=differences,
        latency=tuple(
            compare({name: forward(model, images[:batch]) for name, model in models.items()}, batch, seconds, threads)
            for batch in batch_sizes
        ),
        accuracy=source.accuracy,
    )
