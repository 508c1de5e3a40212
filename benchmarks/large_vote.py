"""A vote from ResNet-50 entries at 224 px: its memory, and its seconds before the first step.

`mvp-vote` of ten classes of photographs, batch 8, two loading processes, two steps, from a zoo of 24 made entries. What
it needs before its first step are forward passes: the scoring images through every entry, and all training images
through the voted model for batch norm and once more for the ridge head. These alone are timed beside it, on random
images, half of them before and half after it. The goals: under 2.5 GB, at most 1.2 × the seconds of the passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Outcome, table
from entry_passes import Passes
from jpeg_folders import make_folders
from large_zoo import make_zoo
from watched import Watched, watch

from lightning_mvp.backbones.passes import images_a_batch
from lightning_mvp.voting.options import VoteOptions
from lightning_mvp.voting.target import REESTIMATION_BATCHES

ENTRIES, CLASSES, IMAGES, SCORING = 24, 10, 140, 500
RATIO, BATCH, WORKERS = 0.5, 8, 2
GOAL_BYTES, GOAL_RATIO = 2.5e9, 1.2
FULL = {"model": "resnet50", "arguments": {"num_classes": 0}, "input_size": 224, "in_chans": 3}
SMOKE = {
    "model": "resnet18",
    "arguments": {"num_classes": 0, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24]},
    "input_size": 32,
    "in_chans": 3,
}


@dataclass(frozen=True)
class Size:
    """How large a vote is.

    Args:
        recipe: of the backbone.
        entries: of the zoo.
        images: files of each of the task's classes.
        scoring: images that decide which entries are near, at most.
        ratio: of the units that each entry lacks.
        sample: images of each entry that are timed alone.
    """

    recipe: dict[str, Any]
    entries: int
    images: int
    scoring: int
    ratio: float
    sample: int


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Adds the size of zoo and task."""
    parser.add_argument("--voters", type=int, default=ENTRIES, help=f"entries of the zoo (default: {ENTRIES})")
    parser.add_argument("--scoring", type=int, default=SCORING, help=f"scoring images (default: {SCORING})")
    parser.add_argument("--photographs", type=int, default=IMAGES, help=f"files of each class (default: {IMAGES})")
    parser.add_argument("--ratio", type=float, default=RATIO, help=f"units that entries lack (default: {RATIO})")
    parser.add_argument("--sample", type=int, default=60, help="images of an entry that are timed alone (default: 60)")


def size_of(options: argparse.Namespace) -> Size:
    """The size that is asked for."""
    if options.smoke:
        return Size(SMOKE, 3, 12, 40, 0.5, 8)
    return Size(FULL, options.voters, options.photographs, options.scoring, options.ratio, options.sample)


def measure(options: argparse.Namespace) -> Outcome:
    """Makes zoo and files, times half of the passes, votes, times the other half."""
    size = size_of(options)
    with tempfile.TemporaryDirectory(prefix="mvp-vote-") as name:
        folder = Path(name)
        make_folders(folder / "images", CLASSES, size.images, options.seed)
        zoo, groups = make_zoo(folder / "zoo", size.recipe, size.entries, size.ratio, CLASSES, options.seed)
        print(f"made a zoo of {len(zoo)} entries and {CLASSES * size.images:,} JPEG files", flush=True)
        passes = Passes(zoo, groups, size.recipe["input_size"], size.sample // 2)
        passes.run()
        voted, until, report = vote(folder, size)
        passes.run()
        needed = passes.needed(*counts(size))
        return told(size, voted, until, report, needed)


def counts(size: Size) -> tuple[int, int, int]:
    """Images of the scoring part, of re-estimation, and of the train part of the task."""
    test = int(0.2 * size.images + 0.5)
    train = size.images - test
    train = CLASSES * (train - int(0.1 * train + 0.5))
    scoring = min(size.scoring, train) // CLASSES * CLASSES
    return scoring, min(train, REESTIMATION_BATCHES * images_a_batch(size.recipe["input_size"])), train


def vote(folder: Path, size: Size) -> tuple[Watched, float, dict[str, Any]]:
    """`mvp-vote`: what was seen of it, its seconds until the first step, and its report."""
    words = [
        *(
            "data=imagefolder",
            f"data.root={folder / 'images'}",
            f"data.batch_size={BATCH}",
            f"data.num_workers={WORKERS}",
        ),
        *("split=all", f"zoo={folder / 'zoo'}", f"output={folder / 'voted'}", f"paths.root={folder / 'out'}"),
        *("backbone=resnet50", "steps=2", "trainer.enable_progress_bar=false", "vote.neighbours=8"),
        *([] if size.scoring == VoteOptions().scoring_images else [f"+vote.scoring_images={size.scoring}"]),
    ]
    stamp = folder / "first-step"
    begin = time.time()
    script = str(Path(__file__).with_name("first_step.py"))
    seen = watch([sys.executable, script, *words], {"OMP_NUM_THREADS": "1", "MVP_FIRST_STEP": str(stamp)})
    report = json.loads((folder / "voted" / "report.json").read_text(encoding="utf-8"))
    return seen, float(stamp.read_text()) - begin, report


def told(size: Size, seen: Watched, until: float, report: dict[str, Any], needed: dict[str, float]) -> Outcome:
    """Tables, measurements and notes."""
    total, stages = sum(needed.values()), report["seconds"]
    first = table(
        f"mvp-vote from {size.entries} entries of {size.recipe['model']}", "", "seconds", "of the passes alone"
    )
    for name, seconds in needed.items():
        first.add_row(f"alone: {name}", f"{seconds:.1f}", f"{seconds / total:.2f}")
    first.add_row("alone, in all", f"{total:.1f}", "1")
    for name, seconds in stages.items():
        first.add_row(f"mvp-vote: {name}", f"{seconds:.1f}", f"{seconds / total:.2f}")
    rest = until - sum(stages.values())
    first.add_row("mvp-vote: start, data, ridge head", f"{rest:.1f}", f"{rest / total:.2f}")
    first.add_row("mvp-vote until its first step", f"{until:.1f}", f"{until / total:.2f}")
    first.add_row("mvp-vote until it ends", f"{seen.seconds:.1f}", f"{seen.seconds / total:.2f}")
    scoring, reestimation, train = counts(size)
    notes = [
        f"{until / total:.2f} × the passes alone (goal: {GOAL_RATIO}); peak memory {seen.peak / 1e9:.2f} GB after "
        f"{seen.peak_at:.0f} s (goal: under {GOAL_BYTES / 1e9}), PSS of {seen.processes} processes.",
        f"{scoring} scoring images, {reestimation} for batch norm, {train} for the ridge head; entries lack "
        f"{size.ratio:.0%} of the units. Load of the machine: {os.getloadavg()[0]:.1f}.",
    ]
    measured = {
        "needed": needed,
        "needed_in_all": total,
        "until_first_step": until,
        "ratio": until / total,
        "stages": stages,
        "seconds": seen.seconds,
        "cpu_seconds": seen.cpu_seconds,
        "peak_bytes": seen.peak,
        "peak_at": seen.peak_at,
        "images": {"scoring": scoring, "reestimation": reestimation, "train": train},
        "entries": size.entries,
        "lacking": size.ratio,
    }
    return Outcome([first], measured, notes)
