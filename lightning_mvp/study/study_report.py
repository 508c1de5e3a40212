"""What a comparison found, for people: a table on screen, a Markdown report with pictures, and every run as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import timm
import torch

from lightning_mvp.files import write_json, write_whole
from lightning_mvp.study.finished_study import Study, by_label, ratios, runs_at
from lightning_mvp.study.markdown import indented, write_markdown
from lightning_mvp.study.report_paragraphs import about, operating_point, overlap, trials, variants, zoos
from lightning_mvp.study.results import Row, hubs, summarise
from lightning_mvp.study.study_pictures import draw_pictures, save_pictures
from lightning_mvp.version import __version__


def write_report(out: Path, studies: Sequence[Study], *, note: str, command: str, learned: str = "") -> list[Row]:
    """Write ``report.md``, ``results.jsonl`` (every run), ``results.json`` (the rest) and the pictures.

    Args:
        out: folder of the report.
        studies: of one backbone: several zoos, operating points or kinds of zoo are set side by side; kinds of study,
            by their labels, one after the other.
        note: what a reader must know first, for instance that this is a demo.
        command: that repeats the study.
        learned: Markdown of what people made of it, placed first.

    Returns:
        The rows of the first table; none where there are trials alone.

    Raises:
        ValueError: no run is done yet.
    """
    everything = [run for study in studies for run in study.runs]
    sections = {
        (label, ratio): runs_at(own, ratio) for label, own in by_label(everything).items() for ratio in ratios(own)
    }
    if not sections and not any((*study.trials, *study.varied) for study in studies):
        raise ValueError(f"Expected finished runs in {studies[0].folder / 'runs'}, but found none.")
    tables = {section: summarise(runs) for section, runs in sections.items()}
    out.mkdir(parents=True, exist_ok=True)
    overlaps = {study.folder.name: found for study in studies if (found := study.overlap)}
    pictures = draw_pictures(
        sections,
        rankings=[ranking for study in studies for ranking in study.rankings],
        varied=[run for study in studies for run in study.varied],
        overlaps=overlaps,
        settings=studies[0].settings,
    )
    save_pictures(out, pictures)
    # Masks are long, and of no use outside their own study's folder.
    lean = ({key: value for key, value in run.items() if key != "masks"} for study in studies for run in study.all_runs)
    lines = "\n".join(json.dumps(run, sort_keys=True) for run in lean)
    write_whole(out / "results.jsonl", f"{lines}\n".encode(), overwrite=True)
    by_name = {study.folder.name: study for study in studies}
    results = {
        "command": command,
        "settings": {name: study.settings.to_dict() for name, study in by_name.items()},
        "versions": {"lightning_mvp": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "pretrain": {name: study.beginning("pretrain") for name, study in by_name.items()},
        "summary": {f"{label} {ratio}".strip(): list(map(asdict, rows)) for (label, ratio), rows in tables.items()},
        "break_even_tasks": {name: study.break_even for name, study in by_name.items()},
        "hubs": {name: dict(hubs(study.runs)) for name, study in by_name.items()},
        "overlap": {name: list(map(asdict, rows)) for name, rows in overlaps.items()},
    }
    write_json(out / "results.json", results, overwrite=True)
    paragraphs = list(about(studies))
    for (label, ratio), rows in tables.items():
        paragraphs += operating_point(ratio, rows, sections[label, ratio], label)
    paragraphs += [*zoos(studies), *overlap(overlaps), *variants(studies), *trials(studies)]
    paragraphs += ["## Pictures", *(f"![{caption}]({name})\n\n{caption}" for name, caption, _ in pictures)]
    paragraphs.append(
        f"## Again\n\n{indented(command)}\n\nEvery run with its seed is in `results.jsonl`; written "
        f"{datetime.now(timezone.utc):%Y-%m-%d} by lightning-mvp {__version__}."
    )
    write_markdown(out / "report.md", "Meta-Vote Pruning against pruning from scratch", note, learned, paragraphs)
    return next(iter(tables.values()), [])
