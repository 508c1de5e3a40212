"""Finding the nearest tasks: what looking only at the most promising entries loses, and what it takes of ten thousand.

On the zoos of `--study`: how many of LEEP's best neighbours are among the entries that recall scores find most
promising, and whether the model that they vote for is worse. On made zoos: seconds to open, to recall, and to score
exactly.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from common import Outcome, bootstrap, seconds_of, shown, summary, table
from rich.progress import track
from rich.table import Table
from studies import TINY, small_study, study_settings

from lightning_mvp import ModelZoo, create_backbone, find_groups
from lightning_mvp.backbones import random_masks, shrink
from lightning_mvp.backbones.create import recipe_of
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.ranking import SHORTLIST, Ranking, rank_neighbours
from lightning_mvp.voting.recall import recalled
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import ZooEntry, entry_id
from lightning_mvp.zoo.catalogue import CATALOGUE, catalogue
from lightning_mvp.zoo.entry_file import SUFFIX
from lightning_mvp.zoo.rebuild import dense_backbone

NEIGHBOURS = 8
SHORTLISTS = (8, 12, 16, 24, 32, 50)
CLASSES = 10
IMAGES = 500
KEPT = 0.1  # of the units of a made entry: files are small, and take longest to open for their size
# What a made zoo's backbone is: 128 features, as the small ResNet of the studies has.
WIDE = {**TINY, "arguments": {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128]}}


def add_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--entries", type=int, nargs="*", help="sizes of the made zoos (default: 100 1000 10000)")


def measure(options: argparse.Namespace) -> Outcome:
    outcome = Outcome([], {})
    with tempfile.TemporaryDirectory() as name:
        folder, studies, targets, steps = Path(name), options.study, options.targets, 100
        if options.smoke and not studies:
            studies, targets, steps = [small_study(folder / "study", sources=5, steps=4)], 2, 4
        for study in studies:
            tables, measured = of_study(study, study_settings(study, options.data), targets, steps, options.seed)
            outcome.tables += tables
            outcome.measured[study.name] = measured
        sizes = options.entries or ((10, 30) if options.smoke else (100, 1_000, 10_000))
        count = 50 if options.smoke else IMAGES
        tables, measured = of_made_zoos(sizes, folder, count, options.repetitions, options.seed)
        outcome.tables += tables
        outcome.measured["made"] = measured
    outcome.notes.append(
        "Recall: the share of LEEP's best neighbours that are among so many entries of the best recall scores. "
        "Intervals: 95 %, over tasks, or over repetitions."
    )
    return outcome


# What is lost ---------------------------------------------------------------------------------------------------------


def of_study(
    study: Path, settings: StudySettings, targets: int, steps: int, seed: int
) -> tuple[list[Table], dict[str, Any]]:
    """Recall of the shortlist on a study's zoo, and accuracy of the vote with it and with all entries scored."""
    runner, zoo = PartRunner(study, settings), ModelZoo(study / "zoo")
    dense, k = dense_backbone(zoo), min(NEIGHBOURS, settings.vote.get("neighbours", NEIGHBOURS))
    groups = runner.zoo_origin.groups
    found: list[dict[str, Any]] = []
    for index in track(range(min(targets, settings.targets)), study.name, transient=True):
        tuned = settings.changed(settings.tuned_for("mvp", steps))
        data = runner.datamodule(runner.split.get(settings.target_kind, index), augment=tuned.augment)
        images, labels = data.scoring_images(seed=settings.seed)
        begin = time.perf_counter()
        promising = recalled(TargetData(zoo, images, labels, dense, groups, zoo.names)).order
        recall_seconds = time.perf_counter() - begin
        options: dict[str, Any] = {"backbone": dense, "groups": groups, "seed": settings.seed}
        begin = time.perf_counter()
        exact = rank_neighbours(zoo, images, labels, k=None, shortlist=None, **options)
        exact_seconds = time.perf_counter() - begin
        best = {neighbour.name for neighbour in exact[:k]}
        size = min(SHORTLIST, len(zoo) - 1)
        kept = set(promising[:size])
        votes = {"all": exact[:k], "shortlist": [neighbour for neighbour in exact if neighbour.name in kept][:k]}
        accuracies = {}
        for which, neighbours in votes.items():
            if which == "shortlist" and {n.name for n in neighbours} == best:
                accuracies[which] = accuracies["all"]  # the same neighbours make the same model
            else:
                accuracies[which] = accuracy_of(zoo, data, neighbours, groups, tuned, steps)
        own = {n: len(best & set(promising[:n])) / k for n in SHORTLISTS if n < len(zoo)}
        found.append(
            {
                "target": index,
                "recall": own,
                "accuracy": accuracies,
                "same": len(best & kept) == k,
                "recall_seconds": recall_seconds,
                "exact_seconds": exact_seconds,
            }
        )
    title = f"{study.name}: {len(zoo)} entries, {len(found)} tasks, {k} neighbours"
    recall = table(f"Recall of LEEP's best, {title}", "shortlist", "recall", "exact models run")
    for n in found[0]["recall"]:
        values = [each["recall"][n] for each in found]
        recall.add_row(str(n), mean_shown(values, 3, seed), f"{n / len(zoo):.0%}")
    worth = table(
        f"Test accuracy of the vote after {steps} steps, {title}", "neighbours of", "accuracy, %", "seconds to find"
    )
    scored = {"all": "exact_seconds", "shortlist": "recall_seconds"}
    for which, clock in scored.items():
        accuracy = mean_shown([100 * each["accuracy"][which] for each in found], 2, seed)
        label = "all entries scored" if which == "all" else f"the best {size} by recall (recall alone)"
        worth.add_row(label, accuracy, shown(summary([each[clock] for each in found], seed), 2))
    differences = [100 * (each["accuracy"]["shortlist"] - each["accuracy"]["all"]) for each in found]
    worth.add_row("difference, points, paired", mean_shown(differences, 2, seed), "")
    same = sum(each["same"] for each in found)
    worth.add_row("the same neighbours on", f"{same} of {len(found)} tasks", "")
    return [recall, worth], {"entries": len(zoo), "neighbours": k, "shortlist": size, "targets": found}


def accuracy_of(
    zoo: ModelZoo, data: Any, neighbours: Sequence[Any], groups: Any, settings: StudySettings, steps: int
) -> float:
    """Test accuracy of the model that these neighbours vote for, fine-tuned."""
    L.seed_everything(settings.seed, verbose=False)
    small, _ = voted_backbone(zoo, data, neighbours=Ranking(neighbours), groups=groups, seed=settings.seed)
    module = TaskModule.for_task(small, data.facts, **settings.optim)
    module.initialise_head(data)
    fit_quietly(module, data, steps, precision=settings.precision, gradient_clip_val=settings.gradient_clip)
    return module.accuracy_on(*data.test_images())


def mean_shown(values: Sequence[float], digits: int, seed: int) -> str:
    low, high = bootstrap(values, statistics.mean, seed)
    return shown({"median": statistics.mean(values), "low": low, "high": high}, digits)


# What it takes --------------------------------------------------------------------------------------------------------


def of_made_zoos(
    sizes: Sequence[int], folder: Path, count: int, repetitions: int, seed: int
) -> tuple[list[Table], dict[str, Any]]:
    """Seconds and memory by the number of entries; one zoo that grows, with random entries."""
    torch.manual_seed(seed)
    backbone = create_backbone({"in_chans": 3, **WIDE}).eval()
    recipe = recipe_of(backbone)
    example = torch.zeros(1, 3, 32, 32)
    groups = find_groups(backbone, example, check=False)
    with torch.no_grad():
        features = backbone(example).shape[1]
    theta0 = {name: value.numpy() for name, value in backbone.state_dict().items()}
    zoo = ModelZoo.create(folder / "zoo", recipe, theta0, groups.sizes)
    entries = made_entries(backbone, groups, features, seed)
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8))
    labels = torch.arange(count) % CLASSES
    shown_in = table(
        f"Finding the nearest of so many entries ({CLASSES} classes, {features} features, {count} images): seconds",
        "entries",
        "catalogue made",
        "zoo opened",
        "one entry is new",
        "recall",
        f"recall, then LEEP of {SHORTLIST}",
        "LEEP of 50",
        "LEEP of all",
        "catalogue",
        "memory",
    )
    measured: list[dict[str, Any]] = []
    dense = dense_backbone(zoo)
    options: dict[str, Any] = {"backbone": dense, "groups": groups}
    searches: dict[str, Callable[[], object]] = {
        "recall": lambda: recalled(TargetData(zoo, images, labels, dense, groups, zoo.names)),
        "found": lambda: rank_neighbours(zoo, images, labels, **options),
        "fifty": lambda: rank_neighbours(zoo, images, labels, shortlist=50, **options),
    }
    for size in sizes:
        # Made by as many jobs on as many days: nobody waits here for the disk, or looks for what killed jobs left.
        with patch("lightning_mvp.files.os.fsync"), patch("lightning_mvp.zoo.zoo.remove_leftovers"):
            while len(zoo) < size - 1:
                for _, entry in zip(range(size - 1 - len(zoo)), entries, strict=False):
                    zoo.add(entry)
        taken: dict[str, list[float]] = {}
        for _ in range(repetitions):
            (zoo.path / CATALOGUE).unlink(missing_ok=True)
            for what in ("made", "opened", "renewed", *searches):
                if what == "renewed":
                    name = zoo.add(next(entries)).name.removesuffix(SUFFIX)
                work = searches.get(what, lambda: catalogue(ModelZoo(zoo.path)))
                taken.setdefault(what, []).append(seconds_of(work))
            zoo.remove(name)
        others = set(zoo.names[50:])
        begin = time.perf_counter()
        rank_neighbours(zoo, images, labels, shortlist=None, exclude=others, **options)
        each = (time.perf_counter() - begin) / (len(zoo) - len(others))
        before, after = memory_of(zoo.path)
        row = {what: summary(values, seed) for what, values in taken.items()}
        row |= {
            "entries": size,
            "exact_all": each * size,
            "catalogue_bytes": (zoo.path / CATALOGUE).stat().st_size,
            "memory_bytes": after - before,
            "seconds": taken,
        }
        measured.append(row)
        shown_in.add_row(
            f"{size:,}",
            *(shown(row[what], 2) for what in ("made", "opened", "renewed", "recall", "found", "fifty")),
            f"about {each * size:,.0f}",
            f"{row['catalogue_bytes'] / 1e6:.1f} MB",
            f"{row['memory_bytes'] / 1e6:.0f} MB",
        )
    return [shown_in], {"rows": measured}


def made_entries(backbone: torch.nn.Module, groups: Any, features: int, seed: int) -> Iterator[ZooEntry]:
    """Entries of random classes without end; the models are few, prototypes and heads are each entry's own."""
    rng, config = np.random.default_rng(seed), {"pruning_ratio": 1 - KEPT}
    models = []
    for number in range(4):
        masks = random_masks(groups, 1 - KEPT, seed + number)
        small = shrink(backbone, groups, masks).eval()
        with torch.no_grad():
            kept = small(torch.zeros(1, 3, 32, 32)).shape[1]
        models.append((masks, small.state_dict(), kept))
    number = 0
    while True:
        masks, state, kept = models[number % len(models)]
        classes = tuple(f"class-{c:03d}" for c in sorted(rng.choice(1000, CLASSES, replace=False).tolist()))
        facts = TaskFacts(f"source-{number:06d}", classes, 32, (0.5,) * 3, (0.25,) * 3)
        entry = ZooEntry(
            name=entry_id(facts.name, config),
            facts=facts.to_dict(),
            config=config,
            masks={name: mask.numpy() for name, mask in masks.items()},
            weights={name: value.numpy() for name, value in state.items()},
            importance={name: rng.random(len(mask), np.float32) for name, mask in masks.items()},
            head={"weight": rng.standard_normal((CLASSES, kept), np.float32), "bias": np.zeros(CLASSES, np.float32)},
            prototypes=rng.standard_normal((CLASSES, features), np.float32),
        )
        number += 1
        yield entry


# In a process of its own, so that nothing else is counted.
MEMORY = """
import resource, sys
from lightning_mvp.zoo.catalogue import ModelZoo, catalogue
used = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
zoo = ModelZoo(sys.argv[1])
before = used()
cards = catalogue(zoo)
print(before, used())
"""


def memory_of(zoo: Path) -> tuple[int, int]:
    """Bytes in memory of a process before and after it has opened the catalogue; zeros where that can't be told."""
    if not Path("/proc/self/statm").exists():
        return 0, 0
    done = subprocess.run([sys.executable, "-c", MEMORY, str(zoo)], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    return before, after
