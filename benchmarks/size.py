"""What an entry takes on disk, of what it need take; and what storing it as bfloat16 costs in accuracy.

An entry need take its parameters (every tensor of its state, and its head) in the stored type, and one bit for each
unit of the masks. The rest is names and facts, importance of units, and class prototypes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import lightning as L
import numpy as np
import torch
from common import Outcome, bootstrap, table
from studies import TINY, small_study, study_settings

from lightning_mvp import ModelZoo, ZooEntry, create_backbone, find_groups
from lightning_mvp.backbones import random_masks, shrink
from lightning_mvp.study.methods import Trial
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.records import record_path
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.zoo import entry_id, read_entry, write_entry
from lightning_mvp.zoo.entry_file import Storage
from lightning_mvp.zoo.tensor_file import open_tensors

WIDTHS: dict[Storage, int] = {"float32": 4, "bfloat16": 2}
BOUND = 1.05
KEPT = 0.5
CLASSES = 10
STEPS = 100

MADE: dict[str, dict[str, Any]] = {
    "resnet18": {"model": "resnet18", "input_size": 64},
    "resnet50": {"model": "resnet50", "input_size": 64},
    "vit_tiny": {"model": "vit_tiny_patch16_224", "input_size": 224},
}
# As long as what `mvp-prune` writes.
CONFIG = {
    "criterion": "taylor",
    "pruning_ratio": 1 - KEPT,
    "ratio_of": "units",
    "rounds": 8,
    "warmup_steps": 0,
    "steps_per_round": 22,
    "scope": "layer",
    "floor": 1,
    "power": 1.0,
    "seed": 0,
    "steps": 300,
}
INFO = {
    "steps": 300,
    "seed": 0,
    "kept": dict.fromkeys(("units", "params", "macs"), 0.7144089732528042),
    "metrics": {f"mvp/kept_{what}": 0.7144089937210083 for what in ("units", "params", "macs", "rounds", "loss")},
    "versions": {"lightning_mvp": "0.1.0", "torch": "2.14.1+cu130", "timm": "1.0.31"},
    "zoo": "0" * 64,
}


def add_options(parser: argparse._ArgumentGroup) -> None:
    """None of its own: the zoos of `--study` are measured; that of the first one gives the accuracy."""


def measure(options: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies, steps = options.study, STEPS
        if options.smoke and not studies:
            studies, steps = [small_study(folder / "study", sources=3, steps=4)], 4
        zoos = [study / "zoo" for study in studies]
        sizes = measure_sizes(zoos, {"tiny": TINY} if options.smoke else MADE, folder / "sizes", options.seed)
        if not studies:
            return sizes
        settings = study_settings(studies[0], options.data)
        cost = measure_accuracy(studies[0], settings, options.targets, steps, folder / "accuracy", options.seed)
    return Outcome(sizes.tables + cost.tables, {**sizes.measured, **cost.measured}, sizes.notes + cost.notes)


# Sizes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Bytes of one entry's file, and what they are for.

    Args:
        storage: the type of its values.
        parameters: values of all tensors of the state, and of the head.
        need: their bytes in that type, and the bits of the masks.
        file: of the whole file.
        facts: what the entry says about itself, in JSON.
        names: name, type, shape and place of each tensor, and the sum.
        importance: of the units.
        prototypes: of the classes.
        other: integers of 8 bytes, and masks that end within a byte.
    """

    storage: Storage
    parameters: int
    need: float
    file: int
    facts: int
    names: int
    importance: int
    prototypes: int
    other: float

    @property
    def ratio(self) -> float:
        return self.file / self.need


def size_of(path: Path, entry: ZooEntry, storage: Storage) -> Size:
    """What of an entry's file is for what."""
    parameters = sum(value.size for part in (entry.weights, entry.head) for value in part.values())
    need = parameters * WIDTHS[storage] + sum(mask.size for mask in entry.masks.values()) / 8
    file = path.stat().st_size
    with open_tensors(path) as tensors:
        facts, begin = len(tensors.metadata["entry"].encode()), tensors.begin
        stored = {name: spec.end - spec.start for name, spec in tensors.specs.items()}
    importance = sum(size for name, size in stored.items() if name.startswith("importance/"))
    prototypes = stored.get("prototype/features", 0)
    other = file - need - begin - importance - prototypes
    return Size(storage, parameters, need, file, facts, begin - facts, importance, prototypes, other)


def measure_sizes(zoos: Sequence[Path], made: Mapping[str, dict[str, Any]], folder: Path, seed: int) -> Outcome:
    """Entries of zoos, and made ones with random weights, in both storages; of each the one that needs most."""
    sources: dict[str, Iterable[ZooEntry]] = {name: [made_entry(recipe, seed)] for name, recipe in made.items()}
    for zoo in zoos:
        label = f"{zoo.resolve().parent.name}/{zoo.name}"
        if label in sources:
            raise ValueError(f"Expected zoos of distinct names, but got {label!r} twice.")
        sources[label] = entries_of(zoo)
    shown_in = table(
        f"Bytes of an entry: at most {BOUND} times what its parameters and mask bits need?",
        "entries of",
        "number",
        "parameters",
        "stored as",
        "bytes",
        "÷ needed",
        "facts",
        "names",
        "importance",
        "prototypes",
        "other",
    )
    measured: list[dict[str, Any]] = []
    for label, entries in sources.items():
        found: dict[Storage, list[Size]] = {storage: [] for storage in WIDTHS}
        for entry in entries:
            for storage in WIDTHS:
                # One after the other under one name: a zoo may be large.
                path = write_entry(folder / f"{entry.name}.safetensors", entry, overwrite=True, storage=storage)
                found[storage].append(size_of(path, entry, storage))
                path.unlink()
        for storage, sizes in found.items():
            if not sizes:
                raise ValueError(f"Expected {label} to hold entries, but it has none.")
            most = max(sizes, key=lambda size: size.ratio)
            shares = [most.facts, most.names, most.importance, most.prototypes, most.other]
            shown_in.add_row(
                label,
                str(len(sizes)),
                f"{most.parameters:,}",
                storage,
                f"{most.file:,}",
                f"{most.ratio:.4f}" + ("" if most.ratio <= BOUND else " (!)"),
                *(f"{share / most.need:.2%}" for share in shares),
            )
            measured += [{"of": label, "ratio": size.ratio, **asdict(size)} for size in sizes]
    over = sorted({f"{each['of']} as {each['storage']}" for each in measured if each["ratio"] > BOUND})
    return Outcome(
        [shown_in],
        {"sizes": measured},
        [
            "Of each zoo the entry with the largest quotient; shares are of what it needs. Every tensor of the state "
            f"counts as parameters in the stored type, counters of batches too. Made entries keep {KEPT:.0%} of each "
            f"group's units and have {CLASSES} classes.",
            f"Above {BOUND}: {', '.join(over)}." if over else f"None is above {BOUND}.",
        ],
    )


def entries_of(zoo: Path) -> Iterator[ZooEntry]:
    """The entries of a zoo, its folder left as it is."""
    for path in sorted((zoo / "tasks").glob("*.safetensors")):
        yield read_entry(path)


def made_entry(recipe: Mapping[str, Any], seed: int) -> ZooEntry:
    """An entry as a zoo has it, with random weights."""
    pixels = recipe["input_size"]
    torch.manual_seed(seed)
    backbone = create_backbone({"in_chans": 3, "arguments": {}, **recipe}).eval()
    example = torch.zeros(1, 3, pixels, pixels)
    groups = find_groups(backbone, example, check=False)
    masks = random_masks(groups, 1 - KEPT, seed)
    small = shrink(backbone, groups, masks).eval()
    with torch.no_grad():
        features, kept = backbone(example).shape[1], small(example).shape[1]
    rng = np.random.default_rng(seed)
    facts = TaskFacts("source-000", tuple(f"class-{i}" for i in range(CLASSES)), pixels, (0.50675,) * 3, (0.26733,) * 3)
    return ZooEntry(
        name=entry_id(facts.name, CONFIG),
        facts=facts.to_dict(),
        config=CONFIG,
        masks={name: mask.numpy() for name, mask in masks.items()},
        weights={name: value.numpy() for name, value in small.state_dict().items()},
        importance={name: rng.random(len(mask), np.float32) for name, mask in masks.items()},
        head={"weight": rng.random((CLASSES, kept), np.float32), "bias": np.zeros(CLASSES, np.float32)},
        prototypes=rng.random((CLASSES, features), np.float32),
        info=INFO,
    )


# Accuracy -------------------------------------------------------------------------------------------------------------


def study_in(study: Path, folder: Path, storage: Storage) -> Path:
    """The same study in another folder, its zoo in that storage: nothing is written where it was found."""
    copytree(study / "zoo", folder / "zoo")
    for path in (study / "theta0.safetensors", study / "parent.safetensors", record_path(study, "parent")):
        if path.exists():
            link = folder / path.relative_to(study)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    if storage != "float32":
        zoo = ModelZoo(folder / "zoo")
        for entry in list(zoo.entries()):
            zoo.add(entry, overwrite=True, storage=storage)
    return folder


def measure_accuracy(
    study: Path, settings: StudySettings, targets: int, steps: int, folder: Path, seed: int
) -> Outcome:
    """Test accuracy of the vote from either zoo on the same tasks, before the first step and after all."""
    names = [settings.target(index) for index in range(min(targets, settings.targets))]
    trial = Trial("mvp", steps, settings.tuned_for("mvp", steps), f"mvp@{steps}")
    runners = {storage: PartRunner(study_in(study, folder / storage, storage), settings) for storage in WIDTHS}
    found: dict[Storage, list[dict[str, Any]]] = {storage: [] for storage in runners}
    for index, name in enumerate(names):
        for storage, runner in runners.items():
            # As in a study of its own: each zoo is ranked by what it holds, and every part begins with this seed.
            runner.run(f"rank--{name}")
            L.seed_everything(settings.seed, verbose=False)
            task = runner.split.get(settings.target_kind, index)
            found[storage].append(runner.compare(task, trial, test=True))
    shown_in = table(
        f"Test accuracy of the vote on {len(names)} tasks, in percent; the difference in points, paired",
        "steps",
        *WIDTHS,
        "bfloat16 − float32",
    )
    measured: dict[str, Any] = {"targets": names, "steps": steps}
    for step in sorted({0, steps}):
        values = {storage: [100 * dict(record["curve"])[step] for record in found[storage]] for storage in WIDTHS}
        pairs = zip(values["bfloat16"], values["float32"], strict=True)
        differences = [rounded - exact for rounded, exact in pairs]
        mean, (low, high) = statistics.mean(differences), bootstrap(differences, statistics.mean, seed)
        means = (f"{statistics.mean(values[storage]):.2f}" for storage in WIDTHS)
        shown_in.add_row(str(step), *means, f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        measured[f"after {step}"] = {**values, "difference": {"mean": mean, "low": low, "high": high}}
    voters = {
        storage: [[each["name"] for each in record["neighbours"]] for record in found[storage]] for storage in WIDTHS
    }
    pairs_of_voters = zip(voters["bfloat16"], voters["float32"], strict=True)
    same = sum(set(rounded) == set(exact) for rounded, exact in pairs_of_voters)
    measured |= {"neighbours": voters, "same neighbours": same}
    return Outcome(
        [shown_in],
        {"accuracy": measured},
        [
            f"The same entries voted on {same} of {len(names)} tasks: each zoo was ranked by what it holds. Intervals "
            "are over tasks (95 %, bootstrap); head by ridge regression before the first step."
        ],
    )
