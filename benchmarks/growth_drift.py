"""What could go wrong in a zoo that grows by use: drift, another domain in between, renewal, masks that go astray.

It grows zoos of its own from the seeds of a finished study, and never writes into the study's folder. Accuracies are on
validation images of tasks that join no zoo: before the first step, and after as many steps as the zoo's entries have.

    python benchmarks/growth_drift.py mvp-outputs/cifar100/grown --data cifar --out benchmarks/cifar100/grown
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import numpy as np
import torch
from common import table
from lightning.pytorch.utilities.rank_zero import rank_zero_module
from rich.console import Console
from studies import growth_parser, study_settings

from lightning_mvp.fitting.fit import fit_quietly, quiet_lightning
from lightning_mvp.fitting.growing import grow, start_accuracy, start_of_growth
from lightning_mvp.study.grown_zoo import copy_entries
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.results import format_points, paired_bootstrap
from lightning_mvp.tasks.data import load_data
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.zoo.kinship import mask_overlap
from lightning_mvp.zoo.lineage import Member, lineage
from lightning_mvp.zoo.waves import family_members
from lightning_mvp.zoo.zoo import ModelZoo

# Weight of the mimicking loss, as in the study.
MIMIC = 2.0


@dataclass
class Bench:
    """One study's data and seeds, and how much is grown from them.

    Args:
        runner: the study's data and backbones.
        steps: of each entry and of each measurement.
    """

    runner: PartRunner
    steps: int = 100

    def drawn(self, classes: Sequence[str], seed: int) -> list[str]:
        """As many of these classes as the study's tasks have."""
        count = self.runner.settings.split["classes_per_task"]
        return sorted(np.random.default_rng(seed).choice(list(classes), count, replace=False).tolist())

    def task(self, name: str, classes: Sequence[str], seed: int, new: bool) -> TaskDataModule:
        """A task of some of these classes: of images that zoos may learn from, or of new ones."""
        chosen = sorted(
            np.random.default_rng(seed)
            .choice(list(classes), self.runner.settings.split["classes_per_task"], replace=False)
            .tolist()
        )
        settings = self.runner.settings
        return TaskDataModule(
            self.runner.halves[new], chosen, name, batch_size=settings.batch_size, augment="none", seed=settings.seed
        )

    def glyphs(self, name: str, seed: int) -> TaskDataModule:
        """A task of rendered characters: another domain."""
        size = self.runner.data.train.images.shape[-1]
        data = load_data("glyphs", image_size=size, per_class_train=64, per_class_val=16)
        chosen = sorted(
            np.random.default_rng(seed)
            .choice(list(data.classes), self.runner.settings.split["classes_per_task"], replace=False)
            .tolist()
        )
        return TaskDataModule(data, chosen, name, batch_size=self.runner.settings.batch_size, augment="none")

    def options(self) -> dict[str, Any]:
        return {"mimic": MIMIC, **self.runner.settings.optim}

    def grow(self, zoo: ModelZoo, data: TaskDataModule, wave: int | None = None) -> None:
        L.seed_everything(self.runner.settings.seed, verbose=False)
        settings = self.runner.settings
        precision = settings.precision
        grow(zoo, data, steps=self.steps, wave=wave, keep_worse=True, precision=precision, **self.options())

    def measure(self, zoo: ModelZoo, targets: Sequence[TaskDataModule]) -> dict[str, list[float]]:
        """Accuracies of targets that start from this zoo's latest eight entries and do not join it."""
        before, after = [], []
        for data in targets:
            L.seed_everything(self.runner.settings.seed, verbose=False)
            module = start_of_growth(zoo, data, family_members(zoo)[1], **self.options())
            before.append(start_accuracy(module, data))
            fit_quietly(module, data, self.steps, precision=self.runner.settings.precision)
            after.append(module.accuracy_on(*data.val_images()))
        return {"before": before, "after": after}

    def seeds(self, folder: Path) -> ModelZoo:
        """A zoo of the study's first eight entries alone."""
        return copy_entries(self.runner.folder, self.runner.settings.sources[:8], folder)


def drift(bench: Bench, folder: Path, entries: int, targets: int) -> dict[str, Any]:
    """First half of the entries of 40 classes, second half of the 40 others: are tasks of the first 40 still served?"""
    seen = np.random.default_rng(1).permutation(bench.runner.split.seen).tolist()
    halves = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    aims = [
        [bench.task(f"aim-{half}-{i}", halves[half], 100 * half + i, new=True) for i in range(targets)]
        for half in (0, 1)
    ]
    zoo, found = bench.seeds(folder), {}
    for half in (None, 0, 1):
        for index in range(0 if half is None else entries // 2):
            bench.grow(zoo, bench.task(f"joins-{half}-{index:03d}", halves[half or 0], 500 + index, new=False))
        size = f"{len(zoo.names)} entries"
        found[size] = {f"classes {i + 1}": bench.measure(zoo, aims[i]) for i in (0, 1)}
        print("drift", size, flush=True)
    return found


def domain(bench: Bench, folder: Path, entries: int, targets: int) -> dict[str, Any]:
    """Photographs, then characters, then photographs again: what do photographs start from?"""
    seen = bench.runner.split.seen
    photographs = [bench.task(f"aim-{i}", seen, 300 + i, new=True) for i in range(targets)]
    characters = [bench.glyphs(f"characters-{i}", 300 + i) for i in range(targets)]
    zoo, found = bench.seeds(folder), {}
    for kind, count in (("photographs", entries), ("characters", entries), ("photographs again", entries // 2)):
        for index in range(count):
            name = f"{kind.replace(' ', '-')}-{index:03d}"
            is_characters = kind == "characters"
            data = (
                bench.glyphs(name, index) if is_characters else bench.task(name, seen, 700 + index + len(kind), False)
            )
            bench.grow(zoo, data)
        found[f"after {count} of {kind}"] = {
            "photographs": bench.measure(zoo, photographs),
            "characters": bench.measure(zoo, characters),
        }
        print("domain", kind, flush=True)
    return found


def renewal(bench: Bench, folder: Path, targets: int, most: int) -> dict[str, Any]:
    """All grown entries of the study's zoo A once more, in one wave, from the vote of its latest eight."""
    shutil.copytree(bench.runner.folder / "grown-A", folder)
    zoo = ModelZoo(folder)
    members = lineage(zoo)
    grown = [member for member in members if member.wave][:most]
    aims = [bench.task(f"aim-{i}", bench.runner.split.seen, 300 + i, new=True) for i in range(targets)]
    found = {f"{len(zoo.names)} entries": {"targets": bench.measure(zoo, aims)}}
    wave = 1 + max(member.wave for member in members)
    for member in grown:
        task = bench.runner.task(member.task)
        bench.grow(zoo, bench.runner.datamodule(task, augment="none"), wave=wave)
    found[f"and {len(grown)} renewed"] = {"targets": bench.measure(zoo, aims)}
    return found


def masks_by_generation(bench: Bench, width: int = 10) -> list[dict[str, Any]]:
    """IoU of the masks of each ten waves of zoo A with the seeds', and among themselves."""
    zoo = ModelZoo(bench.runner.folder / "grown-A")
    members = lineage(zoo)
    masks = {member.name: zoo[member.name].masks for member in members}
    lots: dict[int, list[Member]] = {}
    for member in members:
        lots.setdefault(-(-member.wave // width), []).append(member)  # 0: the seeds, 1: the first ten waves
    seeds = [masks[member.name] for member in lots[0]]
    rows = []
    for number, some in lots.items():
        if len(some) < 2:
            continue
        own = [masks[member.name] for member in some]
        among, chance = mask_overlap(own, own)
        pairs = np.triu_indices(len(own), 1)
        rows.append(
            {
                "waves": f"{some[0].wave} to {some[-1].wave}" if number else "seeds",
                "generations": f"{min(m.generation for m in some)} to {max(m.generation for m in some)}",
                "with_seeds": float(mask_overlap(own, seeds)[0].mean()) if number else None,
                "among": float(among[pairs].mean()),
                "chance": float(chance[pairs].mean()),
            }
        )
    return rows


def shown(found: dict[str, Any], masks: list[dict[str, Any]], console: Console) -> None:
    """Print all tables."""
    for title, states in found.items():
        printed = table(title, "zoo", "tasks", "before the first step", "after it", "minus the first row")
        first: dict[str, list[float]] = {}
        for state, kinds in states.items():
            for kind, accuracies in kinds.items():
                after = accuracies["after"]
                base = first.setdefault(kind, after)
                minus = paired_bootstrap([a - b for a, b in zip(after, base, strict=True)])
                change = "" if base is after else format_points(minus)
                cells = [f"{100 * fmean(accuracies[when]):.1f}" for when in ("before", "after")]
                printed.add_row(state, kind, *cells, change)
        console.print(printed)
    printed = table("masks by generation (IoU)", "waves", "generations", "with the seeds", "among themselves", "chance")
    for row in masks:
        with_seeds = "" if row["with_seeds"] is None else f"{row['with_seeds']:.2f}"
        printed.add_row(row["waves"], row["generations"], with_seeds, f"{row['among']:.2f}", f"{row['chance']:.2f}")
    console.print(printed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = growth_parser(__doc__, "drift.json and drift.md")
    parser.add_argument("--entries", type=int, default=92, help="that join in the test of drift; the others: fewer")
    parser.add_argument("--steps", type=int, default=100, help="of each entry and each measurement")
    parser.add_argument("--targets", type=int, default=8, help="of each kind")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    quiet_lightning()
    rank_zero_module.log.setLevel(logging.WARNING)  # a table for each vote of hundreds
    bench = Bench(PartRunner(given.study, study_settings(given.study, given.data)), given.steps)
    with tempfile.TemporaryDirectory() as folder:
        home, few = Path(folder), max(2, given.entries // 4)
        found = {
            "another domain in between": domain(bench, home / "domain", few, given.targets),
            "drift": drift(bench, home / "drift", given.entries, given.targets),
            "renewal": renewal(bench, home / "renewal", given.targets, 2 * few),
        }
    masks = masks_by_generation(bench)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "drift.json").write_text(json.dumps({**found, "masks": masks}, indent=1) + "\n", encoding="utf-8")
    with (given.out / "drift.md").open("w", encoding="utf-8") as file:
        shown(found, masks, Console(file=file, width=120))
    shown(found, masks, Console(width=120))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
