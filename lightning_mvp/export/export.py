"""Export of a trained model to a folder that needs nothing but torch and timm, or an ONNX runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lightning_mvp.export.export_picture import draw_before_after
from lightning_mvp.export.export_report import ExportReport, measure
from lightning_mvp.export.formats import (
    Format,
    export_program,
    require_formats,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from lightning_mvp.export.source import Source
from lightning_mvp.files import write_json
from lightning_mvp.folders import put_in_place, require_free
from lightning_mvp.pictures import save_beside
from lightning_mvp.tasks.facts import TaskFacts

FILES = ("model.safetensors", "recipe.json", "load.py", "model.pt2", "model.onnx", "report.json", "before_after.png")


def export_model(
    model: nn.Module | Source,
    output: str | Path,
    facts: TaskFacts | None = None,
    *,
    formats: Sequence[Format] = ("safetensors", "pt2", "onnx"),
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 1.0,
    threads: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a small model in formats that need no lightning-mvp, and measure it against the dense one.

    The folder holds ``model.safetensors``, ``recipe.json`` (architecture, classes, preprocessing) and ``load.py``,
    which rebuilds the model from them with torch and timm; ``model.pt2`` (torch.export) and ``model.onnx``, for any
    number of images; ``report.json``, and its figures as a picture, ``before_after.png``. Each file is read again and
    compared with the model. The folder appears whole or not at all.

    Args:
        model: A small backbone, or a Sequential of one and its linear head, as ``MVPCallback.small_model()`` and
            ``MetaVoteModule.to_torch()`` give; or a :class:`Source`.
        output: The new folder.
        facts: The task's facts; needed unless ``model`` is a :class:`Source`.
        formats: The formats to write; safetensors must be among them.
        batch_sizes: The numbers of images for which latency is measured; memory is measured for the largest.
        seconds: About how many seconds to spend on each measurement.
        threads: The number of torch's threads while measuring; default: as many as it has now.
        device: The device to measure on, ``"cpu"`` or ``"cuda"``; default: a GPU if there is one.
        overwrite: Whether to replace such a folder that is there, once the new one is done.

    Returns:
        The report, which rich prints as a table.

    Raises:
        FileExistsError: ``output`` exists, and may not be overwritten or holds other files.
        ValueError: A model without recipe, an argument out of its range, or an exported file that computes something
            else than the model.
        ImportError: The packages that ONNX needs are not installed.
    """
    output = Path(output)
    require_free(output, FILES, overwrite)
    require_formats(formats)
    if (
        not isinstance(batch_sizes, Sequence)
        or not batch_sizes
        or not all(isinstance(batch, int) and batch >= 1 for batch in batch_sizes)
    ):
        raise ValueError(f"Expected argument `batch_sizes` to be integers of at least 1, but got {batch_sizes!r}.")
    if not seconds > 0:
        raise ValueError(f"Expected argument `seconds` to be above 0, but got {seconds!r}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"Expected argument `device` to be 'cpu' or 'cuda', but got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("Expected a GPU for argument `device`='cuda', but torch sees none here. Measure on 'cpu'.")
    if not isinstance(model, Source):
        if facts is None:
            raise ValueError(
                "Expected argument `facts` to be the task's TaskFacts, but got None. Its classes and preprocessing are "
                "exported with the model."
            )
        model = Source.from_module(model, facts)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        folder = Path(work, "model")
        differences = {"safetensors": write_safetensors(model, folder)}
        if set(formats) - {"safetensors"}:
            program = export_program(model)
            writers = {"pt2": write_pt2, "onnx": write_onnx}
            differences |= {name: write(model, program, folder) for name, write in writers.items() if name in formats}
        report = measure(
            model,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            differences=differences,
            batch_sizes=batch_sizes,
            seconds=seconds,
            threads=threads or torch.get_num_threads(),
            device=device,
        )
        write_json(folder / "report.json", report.to_dict())
        save_beside(folder / "before_after.png", lambda: draw_before_after(report))
        put_in_place(folder, output, FILES, overwrite)
    return report
