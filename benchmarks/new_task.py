"""A small model for a new task: `mvp-vote` in a warm process, against pruning from scratch to the same accuracy.

Everything is timed from the data on disk to test accuracy: decode, find neighbours, vote, merge, head, 100 steps,
files. Of a study with a growth named A its grown zoo votes, the latest entries and without a ranking, and mimics.
Rivals are our own iterative Taylor, which cuts between rounds, Torch-Pruning's pruner, and one-shot Taylor with
reconstruction and mimicking, each with several budgets of steps, each a run and a schedule of its own. A rival's time
to the vote's accuracy is interpolated between its budgets, on means over tasks; intervals resample the tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
from clock import REST, Clock
from common import Outcome, bootstrap, seconds_of, shown, summary, table
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict
from studies import small_study, study_settings

from lightning_mvp.apps import runtime, task_choice, vote
from lightning_mvp.study.methods import METHODS, Trial
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.starting_points import StartingPoints
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks import data as tasks_data
from lightning_mvp.training import meta_vote
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.training.rounds import prune_and_cut
from lightning_mvp.training.task import TaskModule

BUDGETS = {"cnn": (300, 600, 1000), "vit": (400, 700, 1000), "efficientnet": (1000,)}
RIVALS = ("taylor", "torch_pruning", "oneshot_reconstructed")
VOTE, GROWN = "mvp-vote", "mvp-vote, the latest of a grown zoo"
MIMIC = 2.0
# What is timed inside of `mvp-vote`; what a vote consists of it says itself.
STAGES: tuple[tuple[Any, str, str], ...] = (
    (MetaVoteModule, "initialise_head", "ridge head"),
    (MetaVoteModule, "take_teacher", "the teacher's moments"),
    (L.Trainer, "fit", "100 steps"),
    (MetaVoteModule, "accuracy_in", "evaluate"),
    (vote, "write", "write files"),
)
VOTE_STAGES = {
    "read": "read and find groups",
    "rank": "nearest tasks",
    "vote": "vote and merge",
    "merge": "vote and merge",
    "build": "build",
    "re-estimate": "re-estimate batch norm",
}


@dataclass(frozen=True)
class Run:
    """One model for one task.

    Args:
        task: its number.
        method: a vote's name, or a rival's.
        steps: of fine-tuning, or of pruning in all.
        seconds: from the data on disk to test accuracy.
        accuracy: on test images.
        stages: what the seconds went to.
    """

    task: int
    method: str
    steps: int
    seconds: float
    accuracy: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Votes:
    """One way of asking a study's zoo.

    Args:
        zoo: the zoo's folder in the study's.
        options: of the vote.
        mimic: weight of the mimicking loss.
    """

    zoo: str
    options: dict[str, Any]
    mimic: float = 0.0


def ways_to_vote(settings: StudySettings) -> dict[str, Votes]:
    """Name → how to vote."""
    ways = {VOTE: Votes("zoo", {"shortlist": 24})}
    if "A" not in settings.growths:
        return {**ways, f"{VOTE}, all entries scored": Votes("zoo", {"shortlist": None})}
    neighbours = settings.growth("A").neighbours
    return {**ways, GROWN: Votes("grown-A", {"similarity": "latest", "neighbours": neighbours}, MIMIC)}


def add_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--budgets", type=int, nargs="*", help="steps of the rivals (default: by the kind of backbone)")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=RIVALS, help="default: all three")


def measure(options: argparse.Namespace) -> Outcome:
    runtime.console.quiet = True
    outcome = start_up(options.repetitions, options.seed)
    try:
        with tempfile.TemporaryDirectory() as folder:
            studies, targets, steps = options.study, options.targets, 100
            if options.smoke and not studies:
                studies, targets, steps = [small_study(Path(folder, "study"), sources=5, steps=4)], 2, 4
            if not studies:
                outcome.notes.append("No task was measured: name a study that `mvp-compare` left by --study.")
            for number, study in enumerate(studies):
                settings = study_settings(study, options.data)
                kind = next((kind for kind in BUDGETS if kind in str(settings.recipe["model"])), "cnn")
                budgets = options.budgets or ((4, 8) if options.smoke else BUDGETS[kind])
                rivals = [(rival, budget) for rival in options.rivals for budget in budgets]
                runs = list(all_runs(study, settings, targets, steps, rivals, Path(folder, str(number)), options.seed))
                tables, measured = evaluate(runs, f"{study.name} ({settings.recipe['model']})", options.seed)
                outcome.tables += tables
                outcome.measured[study.name] = measured
    finally:
        runtime.console.quiet = False
    outcome.notes.append(
        "Seconds are medians over tasks [95 % interval]. `× the vote` is the rival's time to the vote's mean accuracy "
        "over the vote's time. All ran side by side on the same tasks, one thread, in random order."
    )
    return outcome


def start_up(repetitions: int, seed: int) -> Outcome:
    """Seconds of a cold `mvp-vote --help`, in processes of their own."""
    command = [sys.executable, "-m", "lightning_mvp.apps.vote", "--help"]
    help_ = [seconds_of(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(repetitions)]
    bare = [seconds_of(lambda: subprocess.run([sys.executable, "-c", "import hydra"], check=True)) for _ in help_]
    shown_in = table("Starting up", "process", "seconds")
    shown_in.add_row("mvp-vote --help", shown(summary(help_, seed), 2))
    shown_in.add_row("python -c 'import hydra'", shown(summary(bare, seed), 2))
    return Outcome([shown_in], {"start": {"help": help_, "import hydra": bare}})


def all_runs(
    study: Path,
    settings: StudySettings,
    targets: int,
    steps: int,
    rivals: Sequence[tuple[str, int]],
    folder: Path,
    seed: int,
) -> Iterator[Run]:
    """Every method on every task; within a task in random order. The first task is done once before, untimed."""
    ways = ways_to_vote(settings)
    jobs: dict[tuple[str, int], Callable[[int, str], Run]] = {
        (name, steps): lambda task, place, name=name: voted(
            study, settings, task, steps, name, ways[name], folder / place
        )
        for name in ways
    }
    for rival, budget in rivals:
        jobs[rival, budget] = lambda task, _, rival=rival, budget=budget: from_scratch(
            study, settings, task, rival, budget
        )
    rng, order = np.random.default_rng(seed), list(jobs)
    for name in ways:
        jobs[name, steps](0, f"warm-{name}")
    from_scratch(study, settings, 0, "taylor", min(budget for _, budget in rivals) // 4 or 1)
    for task in range(min(targets, settings.targets)):
        for place in rng.permutation(len(order)).tolist():
            run = jobs[order[place]](task, f"{task}-{place}")
            print(f"task {task}: {run.method}@{run.steps} {run.accuracy:.1%} in {run.seconds:.1f} s", flush=True)
            yield run


def forget_data() -> None:
    """Whatever this process knows of data sets: each run reads its own from disk."""
    for cached in (tasks_data._load, task_choice._load, task_choice._classes):
        cached.cache_clear()


def voted(study: Path, settings: StudySettings, task: int, steps: int, name: str, way: Votes, output: Path) -> Run:
    """`mvp-vote` of one task, as its command runs it."""
    config = vote_config(study, settings, task, steps, way, output)
    forget_data()
    clock = Clock()
    data_of = task_choice.data_of
    halved = PartRunner(study, settings)

    def new_images(config: DictConfig) -> Any:
        """The images that targets of this study have: the zoo was made of others."""
        halved.data = data_of(config).loaded()
        return halved.halves[1]

    with ExitStack() as stack:
        stack.enter_context(patch.object(task_choice, "data_of", clock.timed("decode the data", new_images)))
        for owner, attribute, label in STAGES:
            stack.enter_context(patch.object(owner, attribute, clock.timed(label, getattr(owner, attribute))))
        stack.enter_context(patch.object(meta_vote, "rank_zero_info"))  # its table is not for this screen
        clock.start()
        runtime.prepare(config)
        vote.run(config)
        stages = clock.stop()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    for stage, taken in report["seconds"].items():
        stages[VOTE_STAGES[stage]] = stages.get(VOTE_STAGES[stage], 0.0) + taken
        stages[REST] -= taken
    return Run(task, name, steps, sum(stages.values()), report["test_accuracy"], stages)


def vote_config(study: Path, settings: StudySettings, task: int, steps: int, way: Votes, output: Path) -> DictConfig:
    """The configuration of `mvp-vote` on a study's zoo, with the study's data, tasks, optimizer and neighbours."""
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        config = compose("vote", overrides=[f"steps={steps}"])
    with open_dict(config):
        config.zoo, config.output = str(study / way.zoo), str(output)
        config.data = {**settings.data, "batch_size": settings.batch_size, "augment": "none"}
        config.split.update({**settings.split, "kind": settings.target_kind, "task": task})
        config.optim = settings.optim
        config.seed = settings.seed
        config.mimic = way.mimic
        config.vote.neighbours = settings.vote.get("neighbours", 8)
        config.vote.update(way.options)
        config.trainer.precision = settings.precision
        config.trainer.gradient_clip_val = settings.gradient_clip
        config.trainer.enable_progress_bar = False
        config.trainer.limit_val_batches = 0
    return config


def from_scratch(study: Path, settings: StudySettings, task: int, rival: str, steps: int) -> Run:
    """A rival's small model, pruned from θ⁰ with so many steps."""
    settings = settings.changed(settings.tuned_for(rival, steps))
    forget_data()
    clock = Clock()
    L.seed_everything(settings.seed, verbose=False)
    runner = PartRunner(study, settings)
    with clock.part("decode the data"):
        data = runner.datamodule(runner.split.get(settings.target_kind, task))
    begin = StartingPoints(runner, settings, data).make(rival)
    once = METHODS[rival].kind == "once"
    module = TaskModule.for_task(begin.backbone, data.facts, mimic=MIMIC * once, **settings.optim)
    with clock.part("ridge head"):
        module.initialise_head(data)
    with clock.part("the teacher's moments"):
        module.take_teacher(begin.origin.build(), data, begin.origin.groups, begin.masks, settings.seed)
    with clock.part("steps"):
        if once:
            runner.fit(module, data, steps, gradient_clip_val=settings.gradient_clip)
        else:
            cutter, pruning = runner.make_cutter(Trial(rival, steps), module, data, settings, None)
            options = {"clip": settings.gradient_clip, "precision": settings.precision}
            module = prune_and_cut(module, data, cutter, pruning, steps, **options)
    with clock.part("evaluate"):
        accuracy = module.accuracy_on(*data.test_images())
        module.accuracy_on(*data.val_images())
    stages = clock.stop()
    return Run(task, rival, steps, sum(stages.values()), accuracy, stages)


# What came of it ------------------------------------------------------------------------------------------------------


def time_to(runs: Sequence[Run], accuracy: float) -> tuple[float, bool]:
    """Seconds of a rival to a mean accuracy, between its budgets; False: it did not reach it, and takes more than that.

    Where its smallest budget is enough already, the time is that budget's: it might do with less.
    """
    points = []
    for steps in sorted({run.steps for run in runs}):
        own = [run for run in runs if run.steps == steps]
        points.append((statistics.mean(run.accuracy for run in own), statistics.mean(run.seconds for run in own)))
    below: tuple[float, float] | None = None
    for reached, seconds in points:
        if reached >= accuracy:
            if below is None:
                return seconds, True
            share = (accuracy - below[0]) / (reached - below[0])
            return below[1] + share * (seconds - below[1]), True
        below = (reached, seconds)
    return points[-1][1], False


def speed_up(runs: Sequence[Run], name: str, rival: str) -> float:
    """A rival's mean time to the vote's mean accuracy, over the vote's mean time."""
    votes = [run for run in runs if run.method == name]
    seconds, _ = time_to([run for run in runs if run.method == rival], statistics.mean(v.accuracy for v in votes))
    return seconds / statistics.mean(run.seconds for run in votes)


def evaluate(runs: Sequence[Run], title: str, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """The tables of one study, and what they were made from."""
    ways = [name for name in dict.fromkeys(run.method for run in runs) if name not in RIVALS]
    ours = GROWN if GROWN in ways else VOTE
    ways = [ours, *(name for name in ways if name != ours)]
    methods = [(name, next(run.steps for run in runs if run.method == name)) for name in ways]
    methods += sorted({(run.method, run.steps) for run in runs if run.method in RIVALS})
    shown_in = table(f"A new task: {title}", "method", "steps", "seconds", "test accuracy, %", "tasks")
    for method, steps in methods:
        own = [run for run in runs if (run.method, run.steps) == (method, steps)]
        accuracy = statistics.mean(run.accuracy for run in own)
        seconds = shown(summary([run.seconds for run in own], seed), 1)
        shown_in.add_row(method, f"{steps:,}", seconds, f"{100 * accuracy:.1f}", str(len(own)))
    by_task = [[run for run in runs if run.task == task] for task in sorted({run.task for run in runs})]
    ratios: dict[str, Any] = {}
    gains = table(f"Time to the vote's accuracy: {title}", "rival", "seconds", "× the vote", "reached")
    for rival in (name for name in RIVALS if any(run.method == name for run in runs)):
        own = [run for run in runs if run.method == rival]
        wanted = statistics.mean(run.accuracy for run in runs if run.method == ours)
        seconds_to, reached = time_to(own, wanted)
        ratio = speed_up(runs, ours, rival)
        low, high = bootstrap(
            by_task,
            lambda drawn, rival=rival: speed_up([run for part in drawn for run in part], ours, rival),
            seed,
        )
        stats = {"median": ratio, "low": low, "high": high}
        ratios[rival] = {**stats, "seconds": seconds_to, "reached": reached}
        gains.add_row(rival, f"{seconds_to:.1f}", shown(stats, 1), "yes" if reached else "no, not with any budget")
    others = [f"{name.removeprefix(f'{VOTE}, ')}: seconds" for name in ways[1:]]
    parts = table(f"What a vote's seconds go to: {title}", "stage", "seconds", "share", *others)
    means = [_mean_stages([run for run in runs if run.method == name]) for name in ways]
    every = dict.fromkeys(stage for mean in means for stage in mean)
    for stage in sorted(every, key=lambda stage: -means[0].get(stage, 0.0)):
        share = means[0].get(stage, 0.0) / sum(means[0].values())
        cells = [f"{mean.get(stage, 0.0):.2f}" for mean in means]
        parts.add_row(stage, cells[0], f"{share:.0%}", *cells[1:])
    measured = {"ratios": ratios, "stages": dict(zip(ways, means, strict=True)), "runs": [asdict(run) for run in runs]}
    return [shown_in, gains, parts], measured


def _mean_stages(runs: Sequence[Run]) -> dict[str, float]:
    return {stage: statistics.mean(run.stages.get(stage, 0.0) for run in runs) for stage in runs[0].stages}
