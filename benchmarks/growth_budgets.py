"""What a zoo grown by use costs, in multiply-accumulates, steps and seconds, and after how many tasks it has paid.

An image costs three forward passes of the net that trains (one forward, two backward), and one of its teacher's if it
mimics. What shrinks between rounds is counted at the widths that it has in each step. What comes before all tasks is
told apart: θ⁰, the parent, the seeds. Evaluation and ridge heads are not counted.

    python benchmarks/growth_budgets.py mvp-outputs/cifar100/grown --data cifar --out benchmarks/cifar100/grown
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from common import table
from matplotlib.figure import Figure
from rich.console import Console
from studies import growth_parser, study_settings

from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pictures import DPI, GROWN, QUIET, SCRATCH, VOTE, label_ends, page, styled
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.study.finished_study import Study
from lightning_mvp.study.growth import Growth
from lightning_mvp.study.methods import METHODS
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.part_runner import PartRunner

TERA = 1e12
UNITS = ("tera-MACs", "steps", "seconds")


@dataclass(frozen=True)
class Budget:
    """What something takes.

    Args:
        macs: multiply-accumulates, in units of 10¹².
        steps: of the optimizer.
        seconds: of one core, beside whatever else ran.
    """

    macs: float
    steps: float
    seconds: float

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.macs + other.macs, self.steps + other.steps, self.seconds + other.seconds)

    def times(self, count: float) -> Budget:
        return Budget(self.macs * count, self.steps * count, self.seconds * count)


class Costs:
    """The costs of one study's parts.

    Args:
        runner: its data and backbones.
        study: its records.
    """

    def __init__(self, runner: PartRunner, study: Study) -> None:
        self.runner, self.study, self.settings = runner, study, runner.settings

    def training(self, net: int, steps: int, batch: int | None = None, teacher: int = 0) -> float:
        """Tera-MACs of so many steps of a net, and of the forward passes of its teacher."""
        return steps * (batch or self.settings.batch_size) * (3 * net + teacher) / TERA

    def shrinking(self, origin: Origin, pruning: PruningSettings, steps: int, batch: int, teacher: int = 0) -> float:
        """Tera-MACs of training that cuts the net between rounds: all groups keep the same share of their units."""
        schedule, total, done, masks = pruning.schedule(steps), 0.0, 0, Masks.full(origin.pruned)
        scores = {name: mask.float() for name, mask in masks.items()}
        for round_ in range(1, pruning.rounds + 1):
            until = schedule.step_of(round_)
            total += self.training(origin.cost.macs(masks), until - done, batch, teacher)
            masks = pruning.choose(scores, masks, schedule.kept_fraction(round_), origin.pruned, origin.cost)
            done = until
        return total + self.training(origin.cost.macs(masks), steps - done, batch, teacher)

    def record(self, part: str) -> Mapping[str, Any]:
        found = self.study.record(part)
        if found is None:
            raise ValueError(f"Expected the study in {self.study.folder} to have done {part!r}. Run its stages first.")
        return found

    def theta0(self) -> Budget:
        record, options = self.record("pretrain"), {"batch_size": 128, **self.settings.pretrain}
        dense = self.runner.theta0.measure(None)["macs"]
        macs = self.training(dense, record["steps"], options["batch_size"])
        return Budget(macs, record["steps"], record["seconds"])

    def parent(self) -> Budget:
        if self.settings.parent is None:
            return Budget(0.0, 0, 0.0)
        record, parent = self.record("parent"), self.settings.parent
        batch = parent.get("batch_size", self.settings.batch_size)
        pruning = self.runner.scratch_settings(
            self.settings, pruning_ratio=parent["pruning_ratio"], rounds=parent.get("rounds", 8)
        )
        return Budget(
            self.shrinking(self.runner.theta0, pruning, record["steps"], batch), record["steps"], record["seconds"]
        )

    def seeds(self, count: int) -> Budget:
        records = [self.record(name) for name in self.settings.sources[:count]]
        net = self.runner.zoo_origin.measure(None)["macs"]  # it is zeroed, not cut, while it trains
        steps = sum(record["steps"] for record in records)
        return Budget(self.training(net, steps), steps, sum(record["seconds"] for record in records))

    def grown(self, name: str, entries: int) -> Budget:
        growth = Growth(**self.settings.growths[name])
        records = [self.record(f"grow-{name}-{index:03d}") for index in range(entries - growth.seeds)]
        net, teacher = self.small, self.runner.zoo_origin.measure(None)["macs"]
        macs = sum(self.training(net, record["steps"], teacher=teacher) for record in records)
        return Budget(macs, sum(r["steps"] for r in records), sum(r["seconds"] for r in records))

    @property
    def small(self) -> int:
        """MACs of an entry."""
        return self.record(self.settings.sources[0])["macs"]

    def generic_zoo(self) -> Budget:
        record = self.record("generic_zoo")
        net = self.runner.theta0.measure(None)["macs"]
        return Budget(self.training(net, record["steps"]), record["steps"], record["seconds"])

    def target(self, runs: Sequence[Mapping[str, Any]]) -> Budget:
        """A method's median target."""
        run = runs[0]
        settings = self.settings.changed(run["changes"])
        kind, steps = METHODS[run["method"]].kind, run["steps"]
        dense = self.runner.theta0.measure(None)["macs"]
        of_theta0 = kind in ("once", "rounds", "dense") or run["method"] in ("generic", "generic_zoo")
        teacher = (
            (dense if of_theta0 else self.runner.zoo_origin.measure(None)["macs"]) if settings.optim.get("mimic") else 0
        )
        if kind == "rounds":
            pruning = self.runner.scratch_settings(settings)
            macs = self.shrinking(self.runner.theta0, pruning, steps, settings.batch_size, teacher)
        else:
            macs = self.training(run["macs"], steps, teacher=teacher)
        return Budget(macs, steps, median(run["start_seconds"] + run["fit_seconds"] for run in runs))


def break_even(before: Budget, ours: Budget, theirs: Budget) -> dict[str, float]:
    """Tasks after which what comes before them is paid, in each unit; infinite where a task saves nothing."""
    found = {}
    for unit, name in zip(UNITS, ("macs", "steps", "seconds"), strict=True):
        saved = getattr(theirs, name) - getattr(ours, name)
        found[unit] = getattr(before, name) / saved if saved > 0 else math.inf
    return found


@styled
def served(before: Budget, entries: Budget, joined: int, ours: Budget, theirs: Budget, tasks: int = 60) -> Figure:
    """Cumulative MACs against tasks served: those that join the zoo are served, too."""
    about = "Multiply-accumulates of all training, without that of the dense backbone, which all need."
    figure = page(3.8, "What do many tasks cost?", about)
    axes = figure.subplots()
    axes.set(xlabel="tasks served", ylabel="training, 10¹² multiply-accumulates", xlim=(0, tasks))
    ends = []
    for name, colour, first, each in (
        ("iterative Taylor,\n1,000 steps", SCRATCH, 0.0, theirs.macs),
        ("grown zoo, 300 steps", VOTE, before.macs, ours.macs),
        ("grown zoo, 100 steps", GROWN, before.macs, entries.times(1 / joined).macs),
    ):
        axes.plot([0, tasks], [first, first + each * tasks], color=colour, clip_on=False)
        ends.append((tasks, first + each * tasks, name, colour))
    axes.annotate("the zoo's parent\nand seeds", (0, before.macs), (8, 10), textcoords="offset points", color=QUIET)
    axes.set_ylim(0)
    label_ends(axes, ends)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = growth_parser(__doc__, "budgets.json, budgets.md and served.png")
    parser.add_argument("--entries", type=int, default=50, help="of the grown zoo")
    given = parser.parse_args(argv)
    settings = study_settings(given.study, given.data)
    costs = Costs(PartRunner(given.study, settings), Study(given.study, settings))
    growth = Growth(**settings.growths["A"])
    joined = given.entries - growth.seeds
    before = {
        "θ⁰, which all need": costs.theta0(),
        "the parent": costs.parent(),
        f"{growth.seeds} seeds": costs.seeds(growth.seeds),
        f"{joined} entries that join, served tasks themselves": costs.grown("A", given.entries),
    }
    if costs.study.record("generic_zoo") is not None:
        before["generic net of the whole zoo's budget"] = costs.generic_zoo()
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in costs.study.varied:
        runs.setdefault(run["trial"], []).append(run)
    targets = {name: costs.target(found) for name, found in runs.items()}
    zoo = costs.parent() + costs.seeds(growth.seeds)
    entries = costs.grown("A", given.entries)
    payback = {
        f"{name} against {rival}": break_even(zoo, targets[name], targets[rival])
        for name, rival in (
            (f"grown-{given.entries}.A@100", "taylor-mimic@1000"),
            (f"grown-{given.entries}.A@300", "taylor-mimic@1000"),
        )
        if name in targets and rival in targets
    }
    printed = [table("Before any target", "what", *UNITS), table("One target (seconds: the median)", "variant", *UNITS)]
    for made, found in zip(printed, (before, targets), strict=True):
        for name, budget in found.items():
            made.add_row(name, f"{budget.macs:.2f}", f"{budget.steps:,.0f}", f"{budget.seconds:.1f}")
    last = table("Tasks after which parent and seeds are paid", "what", *UNITS)
    for name, each in payback.items():
        last.add_row(name, *(f"{each[unit]:.1f}" for unit in UNITS))
    given.out.mkdir(parents=True, exist_ok=True)
    record = {
        "before": {name: vars(budget) for name, budget in before.items()},
        "targets": {name: vars(budget) for name, budget in targets.items()},
        "break_even": payback,
    }
    (given.out / "budgets.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (given.out / "budgets.md").open("w", encoding="utf-8") as file:
        for made in (*printed, last):
            Console(file=file, width=110).print(made)
    for made in (*printed, last):
        Console(width=110).print(made)
    ours = targets.get(f"grown-{given.entries}.A@300")
    theirs = targets.get("taylor-mimic@1000")
    if ours is not None and theirs is not None:
        served(zoo, entries, joined, ours, theirs).savefig(given.out / "served.png", dpi=DPI)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
