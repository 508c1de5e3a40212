"""What a comparison found, for people: a table on screen, a Markdown report, and every run as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timm
import torch
from rich.table import Table

import lightning_mvp
from lightning_mvp.files import write_json, write_whole
from lightning_mvp.study.plots import draw_all
from lightning_mvp.study.records import read_record
from lightning_mvp.study.results import Row, break_even, hubs, load_runs, summarise, verdict
from lightning_mvp.study.settings import METHODS, StudySettings

HEADINGS = ("method", "steps", "seconds", "accuracy, %", "parameters", "MACs")


def _cells(row: Row, label: str) -> tuple[str, ...]:
    half = "–" if math.isnan(row.accuracy.half) else f"{100 * row.accuracy.half:.1f}"
    return (
        label,
        f"{row.steps:,}",
        f"{row.seconds:.1f}",
        f"{100 * row.accuracy.mean:.1f} ± {half}",
        f"{row.parameters:,}",
        f"{row.macs / 1e6:.2f} M",
    )


def results_table(rows: Sequence[Row], title: str) -> Table:
    """The main table for ``rich.print``, at most 80 columns wide; MVP's row stands out."""
    table = Table(title=title, caption="Accuracy: mean over targets ± 95 % interval.")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(*_cells(row, METHODS[row.method].short), style="bold" if row.method == "mvp" else "")
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(_cells(row, row.label)) + " |" for row in rows]
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each rival, those that MVP does not beat first."""
    rivals = [row for row in rows if row.mvp_minus is not None]
    return [verdict(row) for row in sorted(rivals, key=lambda row: row.mvp_minus.mean)]  # type: ignore[union-attr]


def write_report(folder: Path, settings: StudySettings, *, note: str, command: str) -> list[Row]:
    """Write ``report.md``, ``results.json`` and the pictures from the records in ``folder``.

    Args:
        folder: of the study.
        settings: of the study.
        note: what a reader must know first, for instance that this is a demo.
        command: that repeats the study.

    Returns:
        The rows of the main table.

    Raises:
        ValueError: no run is done yet.
    """
    runs = load_runs(folder, settings)
    if not runs:
        raise ValueError(f"Expected finished runs in {folder / 'runs'}, but found none.")
    rows = summarise(runs)
    pretrain = read_record(folder, "pretrain") or {}
    payback = break_even(settings, folder, runs)
    pictures = draw_all(folder, settings, runs)
    write_json(
        folder / "results.json",
        {
            "command": command,
            "settings": settings.to_dict(),
            "versions": {
                "lightning_mvp": lightning_mvp.__version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
            "pretrain": pretrain,
            "summary": [asdict(row) for row in rows],
            "break_even_tasks": payback,
            "hubs": dict(hubs(runs)),
            "runs": runs,
        },
        overwrite=True,
    )
    text = _markdown(settings, rows, pretrain, payback, hubs(runs), pictures, note, command)
    write_whole(folder / "report.md", text.encode(), overwrite=True)
    return rows


def _sizes_differ(rows: Sequence[Row]) -> list[str]:
    """A warning where pruned models are not of one size, as with global scope or a ratio of MACs."""
    pruned = [row for row in rows if not row.method.startswith("dense")]
    if len({(row.parameters, row.macs) for row in pruned}) < 2:
        return []
    return ["**The pruned models are not of one size**: read the accuracies beside their parameters and MACs."]


def _markdown(
    settings: StudySettings,
    rows: Sequence[Row],
    pretrain: dict[str, Any],
    payback: float | None,
    chosen: Sequence[tuple[str, int]],
    pictures: Sequence[tuple[str, str]],
    note: str,
    command: str,
) -> str:
    split, pruning = settings.split, settings.pruning
    accuracy = pretrain.get("val_accuracy")
    theta0 = (
        f"pre-trained for {pretrain['steps']} steps on the {pretrain['classes']} classes that are not held out "
        f"({100 * accuracy:.1f} % on validation images)"
        if accuracy is not None
        else f"weights: {pretrain.get('weights')}"
    )
    paragraphs = [
        "# Meta-Vote Pruning against pruning from scratch",
        note,
        f"Data: {settings.data['name']}, {split['sources']} source and {split['targets']} target tasks of "
        f"{split['classes_per_task']} classes. θ⁰: {theta0}. Pruning: {pruning['criterion']}, "
        f"{100 * pruning['pruning_ratio']:.0f} % of {pruning.get('ratio_of', 'units')} removed in "
        f"{pruning['rounds']} rounds; each zoo entry took {settings.source_steps} steps. "
        f"Vote: {settings.vote.get('neighbours')} neighbours by {settings.vote.get('similarity', 'leep')}, "
        f"temperature {settings.vote.get('temperature')}. Every method starts from a ridge head, sees the same images "
        f"in the same order at batch {settings.batch_size}, and has the same peak learning rate "
        f"{settings.optim.get('learning_rate')}, which was tuned for none of them.",
        markdown_table(rows),
        "Accuracy is the mean on test images of the targets ± its 95 % interval (Student's t over targets). Seconds "
        "are medians over targets on one thread, from the task's images in memory to the trained model (similarity, "
        "vote, merge, head and steps), evaluation apart. Iterative Taylor trains at full size with zeroed units; its "
        "parameters and MACs are those after cutting. One-shot Taylor's scores take ten batches that its steps do not "
        "count.",
        *_sizes_differ(rows),
        "## Where MVP wins, and where not",
        "Paired over targets: MVP's accuracy minus the other's, 95 % interval in brackets.",
        "\n".join(f"- {sentence}" for sentence in verdicts(rows)),
        (
            f"The zoo's cost is repaid, against iterative Taylor with 10 × the steps, after {math.ceil(payback)} new "
            "tasks, counting seconds on this machine."
            if payback is not None
            else "MVP saved no seconds against iterative Taylor with 10 × the steps, or one of the two was not run: no "
            "number of tasks repays the zoo."
        ),
        (
            f"{len(chosen)} of {split['sources']} zoo entries voted for some target; most often "
            + ", ".join(f"{name} ({times} ×)" for name, times in chosen[:3])
            + "."
            if chosen
            else "No vote was run."
        ),
        "## Pictures",
        *(f"![{caption}]({name})\n\n{caption}" for name, caption in pictures),
        f"## Again\n\n    {command}\n\nEvery run with its seed is in `results.json`; written "
        f"{datetime.now(timezone.utc):%Y-%m-%d} by lightning-mvp {lightning_mvp.__version__}.",
    ]
    return "\n\n".join(paragraphs) + "\n"
