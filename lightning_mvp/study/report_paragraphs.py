"""What a comparison found, as paragraphs and tables in Markdown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_mvp.study import results
from lightning_mvp.study.finished_study import Study, ratios
from lightning_mvp.study.markdown import markdown_table, signed
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.overlap import FEW_UNITS, OverlapRow
from lightning_mvp.study.results import Row, Run, Target, format_points, verdict
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.study.trials import TrialResult, compare_trials, split_order
from lightning_mvp.study.zoo_fingerprints import read_fingerprints

# What the overlap of masks may correlate with, as a table names it. OverlapRow has the same names in small letters.
MEASURES = ("LEEP", "classes", "superclasses")
HEADINGS = ("method", "steps", "seconds", "accuracy, %", "parameters", "MACs")


def _cells(row: Row, label: str) -> tuple[str, ...]:
    half = "–" if math.isnan(row.accuracy.half) else f"{100 * row.accuracy.half:.1f}"
    accuracy, macs = f"{100 * row.accuracy.mean:.1f} ± {half}", f"{row.macs / 1e6:.2f} M"
    return label, f"{row.steps:,}", f"{row.seconds:.1f}", accuracy, f"{row.parameters:,}", macs


def results_table(rows: Sequence[Row], title: str) -> Table:
    """The main table for ``rich.print``, at most 80 columns wide; MVP's row stands out."""
    table = Table(title=title, caption="Accuracy: mean over targets ± 95 % interval.")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        label = METHODS[row.method].short + (" (θ⁰)" if row.zoo else "")
        table.add_row(*_cells(row, label), style="bold" if row.method == "mvp" else "")
    return table


def main_table(rows: Sequence[Row]) -> str:
    """The main table as Markdown, with the number of targets of each row."""
    return markdown_table((*HEADINGS, "targets"), [(*_cells(row, row.label), str(row.targets)) for row in rows])


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each rival, those that MVP does not beat first."""
    known = [(row.mvp_minus.mean, row) for row in rows if row.mvp_minus and (row.method != "mvp" or row.zoo)]
    return [verdict(row) for _, row in sorted(known, key=lambda pair: pair[0])]


def about(studies: Sequence[Study]) -> Iterator[str]:
    """What was compared, on what, and how it was measured."""
    first = next((study for study in studies if study.runs and study.owns_zoo), studies[0])
    settings, vote, pruning = first.settings, first.settings.vote, first.settings.pruning
    draws, ratios = len({study.draw for study in studies}), _ratios(studies)
    yield (
        f"Data: {_data_name(settings)}, {settings.split['sources']} source and {settings.split['targets']} target "
        f"tasks of {settings.split['classes_per_task']} classes"
        + (f", drawn {draws} times" if draws > 1 else "")
        + f". θ⁰: {_theta0(studies)}. Pruning: {pruning['criterion']}, "
        f"{' and '.join(f'{100 * ratio:.0f} %' for ratio in ratios)} of {pruning.get('ratio_of', 'units')} "
        f"removed in {pruning['rounds']} rounds; each zoo entry took {settings.source_steps} steps. "
        f"Vote: {vote.get('neighbours')} neighbours by {vote.get('similarity', 'leep')}, "
        f"temperature {vote.get('temperature')}. Every method starts from a ridge head, sees the same images in the "
        f"same order at batch {settings.batch_size}, and test images decide nothing. Peak learning rate: "
        f"{settings.optim.get('learning_rate')}" + _tuned(settings.tuned) + "."
    )
    yield from kinds_of_targets([study.settings for study in studies if study.runs])
    if words := list(_parents([study for study in studies if study.shares_parent and study.runs])):
        yield f"The zoo's entries share a parent, a mildly pruned model of all source classes: {'; '.join(words)}."
    yield (
        "Accuracy is the mean on test images of the targets ± its 95 % interval (Student's t over targets). Seconds "
        "are medians over targets on one thread, from the task's images in memory to the trained model (similarity, "
        "vote, merge, head and steps), evaluation apart. Iterative pruning spends 60 % of its steps on its rounds and "
        "cuts the model after each, so that its later steps are cheap; its learning rate follows the same one cycle as "
        "every other method's. One-shot Taylor's scores take ten batches that its steps do not count, Torch-Pruning's "
        "ten for each round."
    )


def _theta0(studies: Sequence[Study]) -> str:
    """Where θ⁰ comes from, by the first study that made its own."""
    records = [record for study in studies if (record := study.beginning("pretrain")) is not None]
    for record in records:
        if "val_accuracy" in record:
            return (
                f"pre-trained for {record['steps']} steps on the {record['classes']} classes that are not held out "
                f"({100 * record['val_accuracy']:.1f} % on validation images)"
            )
    return f"weights: {records[0].get('weights') if records else None}"


def _parents(studies: Sequence[Study]) -> Iterator[str]:
    """The parent of the zoo at each operating point."""
    for ratio in _ratios(studies):
        study = next(study for study in studies if study.ratio == ratio)
        parent, record = study.settings.parent or {}, study.beginning("parent") or {}
        images = parent.get("batch_size", study.settings.batch_size)
        yield (
            f"at {ratio:.0%} one pruned by {parent['pruning_ratio']:.0%} in {parent['steps']} steps of {images} images "
            f"({record.get('seconds', 0):.0f} s)"
        )


def words_of_targets(settings: StudySettings) -> str:
    """What the targets of a study are, in a few words, a line for each fact."""
    held_out = ",\nnever seen before" if settings.target_kind == "heldout" else ""
    few = "" if settings.images_per_class is None else f",\n{settings.images_per_class} images of each"
    return f"{settings.split['classes_per_task']} classes of {_data_name(settings)}{held_out}{few}"


def kinds_of_targets(settings: Sequence[StudySettings]) -> Iterator[str]:
    """What the targets of each kind of study are, by its label."""
    lines = {}
    for one in settings:
        classes = f"{one.split['classes_per_task']} classes of {_data_name(one)}"
        held_out = ", held out of pre-training and zoo" if one.target_kind == "heldout" else ""
        few = "" if one.images_per_class is None else f", {one.images_per_class} training images of each class"
        lines[one.label] = f"- **{one.label}**: {one.targets} tasks of {classes}{held_out}{few}."
    lines.pop("", None)
    if lines:
        yield "The targets:"
        yield "\n".join(lines.values())


def _data_name(settings: StudySettings) -> str:
    """The data set; a file's name says more than that it is one."""
    train = settings.data.get("train")
    return str(settings.data["name"]) if train is None else Path(train).stem.removesuffix("_train")


def _ratios(studies: Sequence[Study]) -> list[float]:
    return ratios([run for study in studies for run in study.runs])


def _tuned(tuned: dict[str, dict[str, Any]]) -> str:
    methods: dict[str, list[str]] = {}
    for method, own in tuned.items():
        methods.setdefault(", ".join(f"{key} {value}" for key, value in own.items()), []).append(method)
    words = [f"{changes} for {', '.join(names)}" for changes, names in methods.items()]
    return f"; tuned on validation images of other tasks: {'; '.join(words)}" if words else ", tuned for none"


def operating_point(ratio: float, rows: Sequence[Row], runs: Sequence[Run], label: str = "") -> Iterator[str]:
    """The main table of one operating point (of one kind of study), who won, and steps to reach."""
    pruned = [row for row in rows if not row.method.startswith("dense")]
    dense = next((row for row in rows if row.method == "dense"), None)
    share = f", {pruned[0].macs / dense.macs:.0%} of MACs left" if pruned and dense else ""
    yield f"## {label}{': ' if label else ''}{ratio:.0%} of units removed{share}"
    yield main_table(rows)
    yield from sizes_differ(rows)
    sentences = verdicts(rows)
    if sentences:
        yield "### Where MVP wins, and where not"
        yield "Paired over targets: MVP's accuracy minus the other's, 95 % bootstrap interval in brackets."
        yield "\n".join(f"- {sentence}" for sentence in sentences)
    yield from _reach(runs)


def _reach(runs: Sequence[Run]) -> Iterator[str]:
    """The steps that iterative Taylor needs for MVP's accuracy and MVP for Taylor's, and the longest runs of both."""
    ours, theirs = (_by_steps(runs, method) for method in ("mvp", "taylor"))
    most, longest = max(ours, default=0), max(theirs, default=0)
    common = [target for target in ours.get(most, {}) if target in theirs.get(longest, {})]
    if not common:
        return
    lines = []
    both = {"iterative Taylor": _on_all(theirs, common), "MVP": _on_all(ours, common)}
    for (name, own), (other, goals) in itertools.permutations(both.items()):
        if len(own) < 2:
            continue
        curves = [[(steps, on_target[target]) for steps, on_target in own.items()] for target in common]
        for steps, on_target in goals.items():
            found = results.steps_to_reach(curves, [on_target[target] for target in common])
            after, low, high = (_count(each, min(own), max(own)) for each in found)
            lines.append(f"- {name} reaches {other}'s accuracy at {steps:,} steps after {after} steps [{low}, {high}].")
    rows = results.summarise(runs, ("mvp", most))
    best = next((row for row in rows if (row.method, row.steps) == ("taylor", longest)), None)
    if best is not None and best.mvp_minus is not None and most > 0:
        lines.append(f"- {verdict(best, f'MVP with {most:,} steps')}")
    if lines:
        yield f"### Steps\n\nMean curves over the {len(common)} targets that were run with all of these budgets."
        yield "\n".join(lines)


def _by_steps(runs: Sequence[Run], method: str) -> dict[int, dict[Target, float]]:
    """Numbers of steps, ascending → target → accuracy of a method's runs."""
    own = [run for run in runs if run["method"] == method and not run["zoo"]]
    by_steps = results.by_target(own, lambda run: run["steps"])
    return {steps: results.accuracies(by_steps[steps]) for steps in sorted(by_steps)}


def _on_all(by_steps: dict[int, dict[Target, float]], targets: Sequence[Target]) -> dict[int, dict[Target, float]]:
    """The numbers of steps above 0 that all targets were run with."""
    return {steps: own for steps, own in by_steps.items() if steps and set(targets) <= set(own)}


def _count(steps: float, first: int, last: int) -> str:
    if math.isinf(steps):
        return f"more than {last:,}"
    return f"at most {first:,}" if steps <= first else f"{steps:,.0f}"


def zoos(studies: Sequence[Study]) -> Iterator[str]:
    """What each zoo cost, after how many new tasks that is repaid, and which entries voted."""
    yield "## The zoos"
    for study in studies:
        entries, split = study.sources, study.settings.split
        if not entries or not study.owns_zoo:
            continue
        payback, chosen = study.break_even, results.hubs(study.runs)
        kind = "from a shared parent" if study.shares_parent else "from θ⁰"
        minutes = f"{study.zoo_seconds / 60:.0f} minutes of one core"
        words = f"- `{study.folder.name}` ({kind}): {len(entries)} entries in {minutes}"
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


def overlap(overlaps: dict[str, list[OverlapRow]]) -> Iterator[str]:
    """The overlap of masks by study, a table for each."""
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
        yield markdown_table(
            ("removed", "group", "units", "IoU", "random", "magnitude", *(f"r {measure} (p)" for measure in MEASURES)),
            map(_overlap_cells, rows),
            "rlrrrrrrr",
        )


def _overlap_cells(row: OverlapRow) -> list[str]:
    few = "†" if row.units < FEW_UNITS else ""
    cells = [f"{row.pruning_ratio:.0%}", row.group + few, f"{row.kept:.0f} of {row.units}"]
    cells += [f"{row.iou:.3f} ± {row.deviation:.3f}", f"{row.random:.3f}", f"{row.magnitude:.3f}"]
    tests = [(getattr(row, measure.lower()), getattr(row, f"{measure.lower()}_p")) for measure in MEASURES]
    return cells + ["–" if math.isnan(value) else f"{signed(value, 2)} ({p:.3f})" for value, p in tests]


def trials(studies: Sequence[Study]) -> Iterator[str]:
    """What was tried on development tasks: accuracy on validation images, and the difference to the first trial.

    Studies of one kind, by their label, share a table: their zoos differ, their tasks are the same.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for study in studies:
        kinds.setdefault(study.settings.label or f"`{study.folder.name}`", []).extend(study.trials)
    kinds = {kind: runs for kind, runs in kinds.items() if runs}
    if kinds:
        yield "## What was tried"
        yield (
            "One idea at a time, on development tasks that are neither sources nor targets, measured on *validation* "
            "images; differences are to the first line, paired over tasks, with bootstrap intervals."
        )
    for kind, runs in kinds.items():
        found = compare_trials(runs)
        yield f"{kind}, {max(trial.tasks for trial in found)} tasks:"
        yield markdown_table(
            ("trial", "method", "changes", "accuracy, %", "difference, points", "MACs"),
            [_trial_cells(trial, trial is found[0]) for trial in found],
            "lllrrr",
        )


def _trial_cells(trial: TrialResult, is_reference: bool) -> list[str]:
    changes = ", ".join(f"{key} {value}" for key, value in trial.changes.items())
    difference = "" if is_reference else format_points(trial.difference)
    numbers = [f"{100 * trial.accuracy.mean:.1f}", difference, f"{trial.macs / 1e6:.2f} M"]
    return [trial.name, trial.method, changes, *numbers]


def variants(studies: Sequence[Study]) -> Iterator[str]:
    """A section for each study that has variants; all are compared with the first one that its settings name."""
    for study in studies:
        if not study.varied:
            continue
        found = compare_trials(study.varied, split_order(next(iter(study.settings.variants)))[0])
        minus = f"minus `{found[0].name}`"
        yield f"## Variants, {study.settings.label or study.folder.name}"
        yield markdown_table(
            ("variant", "steps", "targets", "before", "accuracy", minus, "by order of growth", "seconds"),
            [_variant_cells(variant, variant is found[0]) for variant in found],
            "lrrrrrlr",
        )
        if study.grown:
            grown = [
                f"`{name}` {len(records)} entries, {sum(record['seconds'] for record in records):.0f} s"
                for name, records in study.grown.items()
            ]
            yield f"Zoos that grew: {', '.join(grown)}."
        if zoos := read_fingerprints(study.folder):
            values = ", ".join(f"`{name}` {value}" for name, value in zoos.items())
            yield f"Fingerprints of the zoos, the same before the targets and after: {values}."


def _variant_cells(variant: TrialResult, is_reference: bool) -> list[str]:
    mean, half, steps = variant.accuracy.mean, variant.accuracy.half, variant.method.partition("@")[2]
    accuracy = f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
    difference = "" if is_reference or math.isnan(variant.difference.mean) else format_points(variant.difference)
    orders = ", ".join(f"{order} {100 * mean:.1f}" for order, mean in variant.orders.items())
    counts = [f"`{variant.name}`", steps, str(variant.tasks), f"{100 * variant.start:.1f}"]
    return [*counts, accuracy, difference, orders, f"{variant.seconds:.1f}"]


def sizes_differ(rows: Sequence[Row]) -> list[str]:
    """A warning where pruned models are not of one size, as with global scope or a ratio of MACs."""
    pruned = [row for row in rows if not row.method.startswith("dense")]
    if len({(row.parameters, row.macs) for row in pruned}) < 2:
        return []
    return ["**The pruned models are not of one size**: read the accuracies beside their parameters and MACs."]
