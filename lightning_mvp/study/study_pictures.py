"""All pictures of a report, from what its runs allow; and those of a finished report, drawn anew."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_mvp.files import write_whole
from lightning_mvp.pictures import save_figure
from lightning_mvp.study import accuracy_plots, entries_plot, report_plots
from lightning_mvp.study.finished_study import by_label, ratios, runs_at
from lightning_mvp.study.overlap import OverlapRow
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.study.summary_page import Report

# File name, caption and figure.
Picture = tuple[str, str, Figure]
WIDTHS = "widths.png"


def draw_pictures(
    sections: Mapping[tuple[str, float], Sequence[dict[str, Any]]],
    *,
    rankings: Sequence[dict[str, Any]],
    varied: Sequence[dict[str, Any]],
    overlaps: Mapping[str, Sequence[OverlapRow]],
    settings: StudySettings,
) -> list[Picture]:
    """Draw what the runs allow.

    Args:
        sections: label and ratio → the runs of methods on targets.
        rankings: each target's, of the zoo's entries.
        varied: the runs of variants on targets.
        overlaps: name of a study → the overlap of its zoo's masks.
        settings: of the first study.
    """
    pictures: list[Picture] = []
    first = next(iter(sections), ("", 0.0))[0]
    by_ratio = {ratio: runs for (label, ratio), runs in sections.items() if label == first}
    for ratio, runs in by_ratio.items():
        if not (own := [run for run in runs if not run["zoo"]]):
            continue
        name = "accuracy.png" if len(by_ratio) == 1 else f"accuracy-{100 * ratio:.0f}.png"
        whose = f", targets of {first}" if first and len({label for label, _ in sections}) > 1 else ""
        caption = f"Test accuracy against optimizer steps on the new task, {ratio:.0%} of units removed{whose}."
        figure = None
        if len({run["method"] for run in own}) == 1:  # what is compared are variants
            at_ratio = [run for run in varied if run.get("pruning_ratio", ratio) == ratio]
            figure = accuracy_plots.grown_against_steps(by_label(at_ratio).get(first, []))
        pictures.append((name, caption, figure or accuracy_plots.accuracy_against_steps(own)))
    if len(by_ratio) > 1 and (figure := accuracy_plots.accuracy_and_size(by_ratio, settings.steps)):
        pictures.append(("sizes.png", "Test accuracy against size at the operating points.", figure))
    similarity = settings.vote.get("similarity", "leep")
    measure = f"Similarity ({similarity})" if similarity == "prototypes" else "LEEP"
    if rankings:
        what = "Share of the labels' entropy that LEEP explains, 1 + LEEP / H(y)," if measure == "LEEP" else measure
        caption = f"{what} of each zoo task on each target against the number of classes they share."
        pictures.append(("leep.png", caption, report_plots.similarity_against_shared_classes(rankings, measure)))
    growths = {name: settings.growth(name) for name in settings.growths}
    if figure := entries_plot.accuracy_against_entries(varied, growths):
        pictures.append(("growth.png", "Test accuracy against the entries of a zoo that grows by use.", figure))
    for number, (name, rows) in enumerate(overlaps.items()):
        caption = f"Overlap of the masks of all pairs of zoo tasks, group by group (`{name}`)."
        file = f"overlap{f'-{number + 1}' if number else ''}.png"
        pictures.append((file, caption, report_plots.overlap_by_group(rows)))
    widest = [run for run in by_ratio[max(by_ratio)] if not run["zoo"]] if by_ratio else []
    if any(run["method"] == "mvp" for run in widest) and (figure := report_plots.widths_per_group(widest)):
        pictures.append((WIDTHS, "Units kept in each group: iterative Taylor, voted.", figure))
    return pictures


def save_pictures(out: Path, pictures: Sequence[Picture]) -> None:
    """Write them into a folder, each whole or not at all; they replace what is there."""
    for name, _, figure in pictures:
        save_figure(out / name, figure)


def redraw(folder: Path) -> list[str]:
    """Draw the pictures of a finished report anew, from its own ``results.jsonl`` and ``results.json``.

    Rankings are those of targets that all entries voted for. ``report.md`` is changed only where a picture comes, or
    goes because it would show nothing; a picture for which the report has no data stays as it is.

    Args:
        folder: of the report.

    Returns:
        The names of the pictures that were drawn.

    Raises:
        FileNotFoundError: it is no report.
    """
    report = Report(folder)
    runs = [run for run in report.runs if not run.get("variant")]
    sections = {(label, ratio): runs_at(own, ratio) for label, own in by_label(runs).items() for ratio in ratios(own)}
    overlaps = json.loads((folder / "results.json").read_text(encoding="utf-8"))["overlap"]
    pictures = draw_pictures(
        sections,
        rankings=[
            {"similarities": run["neighbours"], "classes": len(run["classes"])}
            for run in runs
            if run["method"] == "all_vote"
        ],
        varied=report.variants,
        overlaps={name: [OverlapRow(**row) for row in rows] for name, rows in overlaps.items() if rows},
        settings=report.settings[0],
    )
    save_pictures(folder, pictures)
    page = folder / "report.md"
    text = page.read_text(encoding="utf-8")
    write_whole(page, _with_pictures(text, pictures).encode(), overwrite=True)
    if WIDTHS not in (names := [name for name, _, _ in pictures]):
        (folder / WIDTHS).unlink(missing_ok=True)
    return names


def _with_pictures(text: str, pictures: Sequence[Picture]) -> str:
    """A report with a link to each new picture, and none to widths where they are no longer drawn."""
    new = {name: f"![{caption}]({name})\n\n{caption}\n\n" for name, caption, _ in pictures}
    if WIDTHS not in new:
        text = re.sub(rf"!\[(.*)\]\({re.escape(WIDTHS)}\)\n\n\1\n\n", "", text)
    missing = "".join(lines for name, lines in new.items() if f"]({name})" not in text)
    return text.replace("## Again\n", f"{missing}## Again\n")
