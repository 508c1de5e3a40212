"""What a comparison found, for people: a table on screen, a Markdown report with pictures, and every run as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from rich.table import Table

import lightning_mvp
from lightning_mvp.files import write_json, write_whole
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import FEW_UNITS, OverlapRow
from lightning_mvp.study.plots import (
    accuracy_against_steps,
    accuracy_and_size,
    overlap_by_group,
    similarity_against_shared_classes,
    widths_per_group,
)
from lightning_mvp.study.pool import Study, ratios, runs_at
from lightning_mvp.study.results import (
    Row,
    break_even,
    hubs,
    paired_bootstrap,
    steps_to_reach,
    summarise,
    target_of,
    verdict,
)

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


def write_report(out: Path, studies: Sequence[Study], *, note: str, command: str, learned: str = "") -> list[Row]:
    """Write ``report.md``, ``results.jsonl`` (every run), ``results.json`` (the rest) and the pictures.

    Args:
        out: folder of the report.
        studies: of one data set and backbone: several zoos, operating points or kinds of zoo are set side by side.
        note: what a reader must know first, for instance that this is a demo.
        command: that repeats the study.
        learned: Markdown of what people made of it, placed first.

    Returns:
        The rows of the first operating point's table.

    Raises:
        ValueError: no run is done yet.
    """
    by_ratio = {ratio: runs for ratio in ratios(studies) if (runs := runs_at(studies, ratio))}
    if not by_ratio:
        raise ValueError(f"Expected finished runs in {studies[0].folder / 'runs'}, but found none.")
    tables = {ratio: summarise(runs) for ratio, runs in by_ratio.items()}
    overlaps = {study.folder.name: found for study in studies if (found := _overlap_of(study))}
    pictures = _draw(out, studies, by_ratio, overlaps)
    lines = [json.dumps(_lean(run), sort_keys=True) for study in studies for run in (*study.runs, *study.trials)]
    write_whole(out / "results.jsonl", ("\n".join(lines) + "\n").encode(), overwrite=True)
    write_json(
        out / "results.json",
        {
            "command": command,
            "settings": {study.folder.name: study.settings.to_dict() for study in studies},
            "versions": {
                "lightning_mvp": lightning_mvp.__version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
            "pretrain": studies[0].record("pretrain"),
            "summary": {str(ratio): [asdict(row) for row in rows] for ratio, rows in tables.items()},
            "break_even_tasks": {study.folder.name: _break_even(study) for study in studies},
            "hubs": {study.folder.name: dict(hubs(study.runs)) for study in studies},
            "overlap": {name: [asdict(row) for row in rows] for name, rows in overlaps.items()},
        },
        overwrite=True,
    )
    paragraphs = ["# Meta-Vote Pruning against pruning from scratch", note, *([learned] if learned else [])]
    paragraphs += _setting(studies)
    for ratio, rows in tables.items():
        paragraphs += _operating_point(ratio, rows, by_ratio[ratio])
    paragraphs += [*_zoos(studies), *_overlap(overlaps), *_trials(studies)]
    paragraphs += ["## Pictures", *(f"![{caption}]({name})\n\n{caption}" for name, caption in pictures)]
    paragraphs.append(
        f"## Again\n\n{_indented(command)}\n\nEvery run with its seed is in `results.jsonl`; written "
        f"{datetime.now(timezone.utc):%Y-%m-%d} by lightning-mvp {lightning_mvp.__version__}."
    )
    write_whole(out / "report.md", ("\n\n".join(paragraphs) + "\n").encode(), overwrite=True)
    return next(iter(tables.values()))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


# Long, and of no use outside their own study's folder.
HEAVY = ("masks", "rounds", "similarities")


def _lean(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in HEAVY}


def _overlap_of(study: Study) -> list[OverlapRow]:
    record = study.record("overlap")
    return [] if record is None else [OverlapRow(**row) for row in record["rows"]]


def _break_even(study: Study) -> float | None:
    return break_even(study.settings, study.folder, study.runs)


def _draw(
    out: Path,
    studies: Sequence[Study],
    by_ratio: dict[float, list[dict[str, Any]]],
    overlaps: dict[str, list[OverlapRow]],
) -> list[tuple[str, str]]:
    """Draw what the runs allow as PNG files; returns file names and captions."""
    figures: list[tuple[str, str, Figure]] = []
    for ratio, runs in by_ratio.items():
        own = [run for run in runs if not run["zoo"]]
        name = "accuracy.png" if len(by_ratio) == 1 else f"accuracy-{100 * ratio:.0f}.png"
        caption = f"Test accuracy against optimizer steps on the new task, {ratio:.0%} of units removed."
        figures.append((name, caption, accuracy_against_steps(own)))
    if len(by_ratio) > 1:
        caption = "Test accuracy against size at the operating points."
        figures.append(("sizes.png", caption, accuracy_and_size(by_ratio, studies[0].settings.steps)))
    similarity = studies[0].settings.vote.get("similarity", "leep")
    measure = f"Similarity ({similarity})" if similarity == "prototypes" else "LEEP"
    if rankings := [ranking for study in studies for ranking in study.rankings]:
        caption = f"{measure} of each zoo task on each target against the number of classes they share."
        figures.append(("leep.png", caption, similarity_against_shared_classes(rankings, measure)))
    for number, (name, rows) in enumerate(overlaps.items()):
        caption = f"Overlap of the masks of all pairs of zoo tasks, group by group (`{name}`)."
        figures.append((f"overlap{f'-{number + 1}' if number else ''}.png", caption, overlap_by_group(rows)))
    runs = by_ratio[max(by_ratio)]
    if any(run["method"] == "mvp" for run in runs):
        caption = "Units per group: dense, iterative Taylor, voted."
        figures.append(("widths.png", caption, widths_per_group([run for run in runs if not run["zoo"]])))
    for name, _, figure in figures:
        figure.savefig(out / name, dpi=130)
    return [(name, caption) for name, caption, _ in figures]


def _setting(studies: Sequence[Study]) -> Iterator[str]:
    first = studies[0]
    settings, pretrain = first.settings, first.record("pretrain") or {}
    split, pruning, accuracy = settings.split, settings.pruning, pretrain.get("val_accuracy")
    theta0 = (
        f"pre-trained for {pretrain['steps']} steps on the {pretrain['classes']} classes that are not held out "
        f"({100 * accuracy:.1f} % on validation images)"
        if accuracy is not None
        else f"weights: {pretrain.get('weights')}"
    )
    draws = len({study.draw for study in studies})
    vote = settings.vote
    yield (
        f"Data: {settings.data['name']}, {split['sources']} source and {split['targets']} target tasks of "
        f"{split['classes_per_task']} classes"
        + (f", drawn {draws} times" if draws > 1 else "")
        + f". θ⁰: {theta0}. Pruning: {pruning['criterion']}, "
        f"{' and '.join(f'{100 * ratio:.0f} %' for ratio in ratios(studies))} of {pruning.get('ratio_of', 'units')} "
        f"removed in {pruning['rounds']} rounds; each zoo entry took {settings.source_steps} steps. "
        f"Vote: {vote.get('neighbours')} neighbours by {vote.get('similarity', 'leep')}, "
        f"temperature {vote.get('temperature')}. Every method starts from a ridge head, sees the same images in the "
        f"same order at batch {settings.batch_size}, and test images decide nothing. Peak learning rate: "
        f"{settings.optim.get('learning_rate')}" + _tuned(settings.tuned) + "."
    )
    if parents := [study for study in studies if study.shares_parent]:
        words = []
        for ratio in ratios(parents):
            study = next(study for study in parents if study.ratio == ratio)
            parent, record = study.settings.parent or {}, study.record("parent") or {}
            words.append(
                f"at {ratio:.0%} one pruned by {parent['pruning_ratio']:.0%} in {parent['steps']} steps of "
                f"{parent.get('batch_size', settings.batch_size)} images ({record.get('seconds', 0):.0f} s)"
            )
        yield f"The zoo's entries share a parent, a mildly pruned model of all source classes: {'; '.join(words)}."
    yield (
        "Accuracy is the mean on test images of the targets ± its 95 % interval (Student's t over targets). Seconds "
        "are medians over targets on one thread, from the task's images in memory to the trained model (similarity, "
        "vote, merge, head and steps), evaluation apart. Iterative pruning spends 60 % of its steps on its rounds and "
        "cuts the model after each, so that its later steps are cheap; its learning rate follows the same one cycle as "
        "every other method's. One-shot Taylor's scores take ten batches that its steps do not count, Torch-Pruning's "
        "ten for each round."
    )


def _tuned(tuned: dict[str, dict[str, Any]]) -> str:
    changes = [
        f"{method} {', '.join(f'{name} {value}' for name, value in own.items())}"
        for method, own in tuned.items()
        if own
    ]
    return f", tuned on validation images of other tasks to: {'; '.join(changes)}" if changes else ", tuned for none"


def _operating_point(ratio: float, rows: Sequence[Row], runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    pruned = [row for row in rows if not row.method.startswith("dense")]
    dense = next((row for row in rows if row.method == "dense"), None)
    share = f", {pruned[0].macs / dense.macs:.0%} of MACs left" if pruned and dense else ""
    yield f"## {ratio:.0%} of units removed{share}"
    yield markdown_table(rows)
    yield from _sizes_differ(rows)
    sentences = verdicts(rows)
    if sentences:
        yield "### Where MVP wins, and where not"
        yield "Paired over targets: MVP's accuracy minus the other's, 95 % bootstrap interval in brackets."
        yield "\n".join(f"- {sentence}" for sentence in sentences)
    yield from _reach(rows, runs)


def _reach(rows: Sequence[Row], runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How many steps iterative Taylor needs for what MVP reaches, and MVP for what Taylor reaches."""
    ours, theirs = (_curves(runs, method) for method in ("mvp", "taylor"))
    common = [target for target in ours if target in theirs]
    budgets = {len(curves[target]) for curves in (ours, theirs) for target in common}
    if not common or min(budgets) < 2:
        return
    for name, curves, other, goals in (
        ("iterative Taylor", theirs, "MVP", ours),
        ("MVP", ours, "iterative Taylor", theirs),
    ):
        wanted = {step for target in common for step, _ in goals[target]} - {0}
        for step in sorted(wanted):
            values = [dict(goals[target])[step] for target in common if step in dict(goals[target])]
            if len(values) != len(common):
                continue
            own = [[point for point in curves[target] if point[0] > 0] for target in common]
            if len({len(curve) for curve in own}) > 1 or len(own[0]) < 2:
                continue
            found, last = steps_to_reach(own, values), own[0][-1][0]
            number = _count(found.steps, own[0][0][0], last)
            span = f"[{_count(found.low, own[0][0][0], last)}, {_count(found.high, own[0][0][0], last)}]"
            yield f"- {name} reaches {other}'s accuracy at {step:,} steps after {number} steps {span}."


def _count(steps: float, first: int, last: int) -> str:
    if math.isinf(steps):
        return f"more than {last:,}"
    return f"at most {first:,}" if steps <= first else f"{steps:,.0f}"


def _curves(runs: Sequence[dict[str, Any]], method: str) -> dict[tuple[object, str], list[tuple[int, float]]]:
    curves: dict[tuple[object, str], list[tuple[int, float]]] = {}
    for run in sorted(runs, key=lambda run: run["steps"]):
        if run["method"] == method and not run["zoo"]:
            curves.setdefault(target_of(run), []).append((run["steps"], run["accuracy"]))
    return curves


def _zoos(studies: Sequence[Study]) -> Iterator[str]:
    yield "## The zoos"
    for study in studies:
        entries, split = study.sources, study.settings.split
        if not entries:
            continue
        seconds = sum(record["seconds"] for record in entries) + (study.record("parent") or {"seconds": 0})["seconds"]
        payback, chosen = _break_even(study), hubs(study.runs)
        kind = "from a shared parent" if study.shares_parent else "from θ⁰"
        words = f"- `{study.folder.name}` ({kind}): {len(entries)} entries in {seconds / 60:.0f} minutes of one core"
        if payback is not None:
            words += (
                "; repaid, against iterative Taylor with its most steps, after "
                f"{math.ceil(payback)} new tasks, counting seconds on this machine"
            )
        if chosen:
            share = sum(times for _, times in chosen[: max(1, len(entries) // 10)]) / sum(times for _, times in chosen)
            words += (
                f". {len(chosen)} of {split['sources']} entries voted for some target; the tenth of the zoo that was "
                f"chosen most had {share:.0%} of the votes ({chosen[0][0].partition('--')[0]} {chosen[0][1]} ×)"
            )
        yield words + "."


def _overlap(overlaps: dict[str, list[OverlapRow]]) -> Iterator[str]:
    if not overlaps:
        return
    yield "## Do similar tasks keep the same units?"
    yield (
        "All pairs of zoo tasks, by group, at three ratios taken from the rounds of one run: the mean IoU of their "
        "masks, that of random masks of the same widths, and that of a task's mask with the backbone's own magnitude "
        "mask; then correlations over pairs with LEEP (mean of both directions), shared classes and shared "
        f"superclasses, with the p-value of Mantel's test (tasks permuted). Groups of under {FEW_UNITS} units have a †."
    )
    for name, rows in overlaps.items():
        yield f"`{name}`:"
        lines = [
            "| removed | group | units | IoU | random | magnitude | r LEEP (p) | r classes (p) | r superclasses (p) |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in rows:
            few = "†" if row.units < FEW_UNITS else ""
            cells = [f"{row.pruning_ratio:.0%}", row.group + few, f"{row.kept:.0f} of {row.units}"]
            cells += [f"{row.iou:.3f} ± {row.deviation:.3f}", f"{row.random:.3f}", f"{row.magnitude:.3f}"]
            for measure in ("leep", "classes", "superclasses"):
                value, p = getattr(row, measure), getattr(row, f"{measure}_p")
                cells.append("–" if math.isnan(value) else f"{value:+.2f} ({p:.3f})".replace("-", "−"))
            lines.append("| " + " | ".join(cells) + " |")
        yield "\n".join(lines)


def _trials(studies: Sequence[Study]) -> Iterator[str]:
    """What was tried on development tasks: accuracy on validation images, and the difference to the first trial."""
    shown = False
    for study in studies:
        by_trial: dict[str, dict[str, dict[str, Any]]] = {}
        for run in study.trials:
            by_trial.setdefault(run["trial"], {})[run["task"]] = run
        if not by_trial:
            continue
        if not shown:
            yield "## What was tried"
            yield (
                "One idea at a time, on development tasks that are neither sources nor targets, measured on "
                "*validation* images; differences are to the first line, paired over tasks, with bootstrap intervals."
            )
            shown = True
        base = next(iter(by_trial.values()))
        lines = ["| trial | method | changes | accuracy, % | difference, points |", "| --- | --- | --- | ---: | ---: |"]
        for name, on_task in by_trial.items():
            one = next(iter(on_task.values()))
            pairs = [100 * (run["accuracy"] - base[task]["accuracy"]) for task, run in on_task.items() if task in base]
            found = paired_bootstrap(pairs)
            difference = "" if on_task is base else f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
            changes = ", ".join(f"{key} {value}" for key, value in one["changes"].items())
            accuracy = 100 * fmean(run["accuracy"] for run in on_task.values())
            method = f"{one['method']}@{one['steps']}"
            cells = (name, method, changes, f"{accuracy:.1f}", difference.replace("-", "−"))
            lines.append("| " + " | ".join(cells) + " |")
        yield f"`{study.folder.name}`, {max(map(len, by_trial.values()))} tasks:"
        yield "\n".join(lines)


def _sizes_differ(rows: Sequence[Row]) -> list[str]:
    """A warning where pruned models are not of one size, as with global scope or a ratio of MACs."""
    pruned = [row for row in rows if not row.method.startswith("dense")]
    if len({(row.parameters, row.macs) for row in pruned}) < 2:
        return []
    return ["**The pruned models are not of one size**: read the accuracies beside their parameters and MACs."]
