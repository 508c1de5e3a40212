"""Pruning on photographs: what `mvp-prune` of ten classes out of a hundred folders takes, and what it opens.

20,000 JPEG files of 500 × 375 in 100 folders are made for it. A ResNet-50 at 224 px, batch 8, two steps, two loading
processes, is pruned for ten of the classes: from all folders, and from a folder of these ten alone, in turns. The
goals: under 3 GB of memory, and at most 1.3 × the seconds of the folder of ten. `mvp-prune -m … dry_run=true` of 100
tasks is to open no image.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import Outcome, ratio_summary, shown, summary, table
from jpeg_folders import make_folders
from watched import Watched, command_of, watch

CLASSES, IMAGES = 100, 200
WANTED = range(40, 50)
GOAL_BYTES, GOAL_RATIO = 3e9, 1.3
SMALL_BACKBONE = (
    "backbone.recipe.model=resnet18",
    "+backbone.recipe.arguments.channels=[8,16,16,24]",
    "+backbone.recipe.arguments.layers=[1,1,1,1]",
    "backbone.recipe.input_size=32",
)
OPENED = Path(__file__).parent / "opened"


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        classes: number of folders.
        images: files in each.
        wanted: numbers of the classes of the task.
        tasks: number of tasks of the dry run.
        backbone: words of the commands, with the head that training begins with.
        repetitions: turns.
    """

    classes: int
    images: int
    wanted: Sequence[int]
    tasks: int
    backbone: tuple[str, ...]
    repetitions: int


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Adds where the files are, and what to leave out."""
    parser.add_argument("--keep", type=Path, help="a folder for the files, which stay and are used again (1 GB)")
    parser.add_argument("--turns", type=int, default=2, help="runs of mvp-prune on each folder (default: 2)")
    parser.add_argument("--head", choices=("ridge", "random"), default="ridge", help="head_init of mvp-prune")


def size_of(options: argparse.Namespace) -> Size:
    """The size that is asked for."""
    if options.smoke:
        return Size(4, 8, (1, 2), 3, SMALL_BACKBONE, 1)
    return Size(CLASSES, IMAGES, WANTED, 100, ("backbone=resnet50", f"head_init={options.head}"), options.turns)


@contextmanager
def folders(size: Size, keep: Path | None, seed: int) -> Iterator[tuple[Path, Path, Path]]:
    """All classes, the wanted ones alone, and a folder for what is written; the first two stay if asked for."""
    with tempfile.TemporaryDirectory(prefix="mvp-photographs-") as temporary:
        root = keep or Path(temporary, "images")
        every, few = root / "all", root / "wanted"
        if not few.is_dir():  # it comes last
            shutil.rmtree(every, ignore_errors=True)
            print(f"making {size.classes * size.images:,} JPEG files", flush=True)
            names = make_folders(every, size.classes, size.images, seed)
            partial = root / "wanted.partial"
            for name in (names[number] for number in size.wanted):
                shutil.copytree(every / name, partial / name)
            partial.rename(few)
        yield every, few, Path(temporary)


def prune_words(root: Path, size: Size, output: Path, batch_size: int = 8) -> list[str]:
    """The command that prunes for the wanted classes below a folder."""
    names = ",".join(f"class-{number:03d}" for number in size.wanted)
    return [*common_words(root, size, output, batch_size), "split.task=wanted", f"split.classes=[{names}]"]


def common_words(root: Path, size: Size, output: Path, batch_size: int = 8) -> list[str]:
    """Words of commands on a folder of photographs, whose backbone has random weights."""
    return [
        *("data=imagefolder", f"data.root={root}", f"data.batch_size={batch_size}", "data.num_workers=2"),
        *size.backbone,
        *("backbone.pretrained=false", "weights=null", "steps=2", "pruning.rounds=1"),
        *(f"paths.root={output}", "trainer.enable_progress_bar=false"),
    ]


def opened(log: Path) -> list[Path]:
    """The files that a log says were opened, each as often as that happened."""
    return [Path(line) for line in log.read_text().splitlines()] if log.exists() else []


def counting(log: Path, below: Path) -> dict[str, str]:
    """Environment in which image files below a folder that any process opens are written down; see `opened/`."""
    return {"PYTHONPATH": str(OPENED), "MVP_OPENED_LOG": str(log), "MVP_OPENED_BELOW": str(below)}


def pruned(root: Path, size: Size, scratch: Path) -> tuple[Watched, list[Path]]:
    """`mvp-prune` for the wanted classes below a folder: what was seen of it, and the files that it opened."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        log = Path(output, "opened.log")
        command = command_of("prune", *prune_words(root, size, Path(output, "out")))
        seen = watch(command, {"OMP_NUM_THREADS": "1", **counting(log, root)})
        return seen, opened(log)


def planned(root: Path, size: Size, scratch: Path) -> tuple[Watched, list[Path]]:
    """`mvp-prune -m dry_run=true` of many tasks: likewise."""
    wanted = min(len(size.wanted), size.classes)
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        log = Path(output, "opened.log")
        words = [
            *("-m", *common_words(root, size, Path(output, "out"))),
            *("dry_run=true", f"split.task=range(0,{size.tasks})"),
            *(f"split.sources={size.tasks}", "split.targets=0", f"split.classes_per_task={wanted}"),
        ]
        seen = watch(command_of("prune", *words), {"OMP_NUM_THREADS": "1", **counting(log, root)})
        return seen, opened(log)


def measure(options: argparse.Namespace) -> Outcome:
    """Prunes from both folders in turns, then plans the tasks of a sweep."""
    size = size_of(options)
    runs: dict[str, list[Watched]] = {"all folders": [], "these alone": []}
    files: dict[str, list[list[Path]]] = {name: [] for name in runs}
    with folders(size, options.keep, options.seed) as (every, few, scratch):
        for turn in range(size.repetitions):
            pair = list(zip(runs, (every, few), strict=True))
            for name, root in pair if turn % 2 == 0 else pair[::-1]:
                seen, names = pruned(root, size, scratch)
                runs[name].append(seen)
                files[name].append(names)
                print(f"{name}: {seen.seconds:.0f} s, {seen.peak / 1e9:.2f} GB", flush=True)
        plan, plan_files = planned(every, size, scratch)
    wanted = {f"class-{number:03d}" for number in size.wanted}
    others = sorted({path.parent.name for turn in files["all folders"] for path in turn} - wanted)
    return Outcome(*_told(size, runs, files, plan, len(plan_files), others))


def _told(
    size: Size,
    runs: dict[str, list[Watched]],
    files: dict[str, list[list[Path]]],
    plan: Watched,
    plan_opened: int,
    others: list[str],
) -> tuple[list[Any], dict[str, Any], list[str]]:
    """Tables, measurements and notes."""
    title = f"mvp-prune for {len(size.wanted)} classes, {size.images} photographs each"
    first = table(title, "folder", "seconds", "of the processors", "peak memory, GB", "files opened", "times opened")
    for name, seen in runs.items():
        first.add_row(
            f"{name} ({size.classes if name == 'all folders' else len(size.wanted)} folders)",
            shown(summary([each.seconds for each in seen]), 1),
            shown(summary([each.cpu_seconds for each in seen]), 1),
            f"{max(each.peak for each in seen) / 1e9:.2f}",
            f"{statistics.median(len(set(names)) for names in files[name]):,.0f}",
            f"{statistics.median(map(len, files[name])):,.0f}",
        )
    every, few = runs.values()
    wall = ratio_summary([each.seconds for each in every], [each.seconds for each in few])
    cpu = ratio_summary([each.cpu_seconds for each in every], [each.cpu_seconds for each in few])
    second = table(f"mvp-prune -m dry_run=true of {size.tasks} tasks", "seconds", "images opened", "peak memory, GB")
    second.add_row(f"{plan.seconds:.1f}", str(plan_opened), f"{plan.peak / 1e9:.2f}")
    peak = max(each.peak for each in every)
    notes = [
        f"All folders take {shown(wall)} × the seconds of these alone (goal: {GOAL_RATIO}), {shown(cpu)} × of the "
        f"processors, and {peak / 1e9:.2f} GB (goal: under {GOAL_BYTES / 1e9:.0f}): PSS, summed over the processes.",
        f"Classes of other tasks that were opened: {', '.join(others) or 'none'}.",
    ]
    measured = {
        "runs": {name: [_plain(each) for each in seen] for name, seen in runs.items()},
        "opened": {name: [[len(set(names)), len(names)] for names in turns] for name, turns in files.items()},
        "opened_of_other_classes": others,
        "ratio": wall,
        "cpu_ratio": cpu,
        "peak_bytes": peak,
        "plan": {**_plain(plan), "tasks": size.tasks, "opened": plan_opened},
    }
    return [first, second], measured, notes


def _plain(seen: Watched) -> dict[str, Any]:
    return {name: value for name, value in asdict(seen).items() if name != "output"}
