"""A small model for a new task: `mvp-vote` in a warm process, against pruning from scratch to the same accuracy.

Everything is timed from the data on disk to test accuracy: decode, find neighbours, vote, merge, head, 100 steps,
files. Rivals are our own iterative Taylor, which cuts between rounds, and Torch-Pruning's pruner, both with several
budgets of steps, each a run and a schedule of its own. A rival's time to the vote's accuracy is interpolated between
its budgets, on means over tasks; intervals resample the tasks.
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
from lightning_mvp.study.methods import Trial
from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.starting_points import StartingPoints
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks import data as tasks_data
from lightning_mvp.training import meta_vote
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.training.rounds import prune_and_cut
from lightning_mvp.training.task import TaskModule

BUDGETS = {"cnn": (200, 400, 600, 800), "vit": (400, 700, 1000)}
VOTES = {"mvp-vote": 24, "mvp-vote, all entries scored": None}
RIVALS = ("taylor", "torch_pruning")
# What is timed inside of `mvp-vote`; what a vote consists of it says itself.
STAGES: tuple[tuple[Any, str, str], ...] = (
    (task_choice, "data_of", "decode the data"),
    (MetaVoteModule, "initialise_head", "ridge head"),
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


def add_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--budgets", type=int, nargs="*", help="steps of the rivals (default: by the kind of backbone)")


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
                kind = "vit" if "vit" in str(settings.recipe["model"]) else "cnn"
                budgets = options.budgets or ((4, 8) if options.smoke else BUDGETS[kind])
                runs = list(all_runs(study, settings, targets, steps, budgets, Path(folder, str(number)), options.seed))
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
    budgets: Sequence[int],
    folder: Path,
    seed: int,
) -> Iterator[Run]:
    """Every method on every task; within a task in random order. The first task is done once before, untimed."""
    jobs: dict[tuple[str, int], Callable[[int, str], Run]] = {
        (name, steps): lambda task, place, name=name: voted(study, settings, task, steps, name, folder / place)
        for name in VOTES
    }
    for rival in RIVALS:
        for budget in budgets:
            jobs[rival, budget] = lambda task, _, rival=rival, budget=budget: from_scratch(
                study, settings, task, rival, budget
            )
    rng, order = np.random.default_rng(seed), list(jobs)
    for name in VOTES:
        jobs[name, steps](0, f"warm-{name}")
    from_scratch(study, settings, 0, "taylor", min(budgets) // 4 or 1)
    for task in range(min(targets, settings.targets)):
        for place in rng.permutation(len(order)).tolist():
            run = jobs[order[place]](task, f"{task}-{place}")
            print(f"task {task}: {run.method}@{run.steps} {run.accuracy:.1%} in {run.seconds:.1f} s", flush=True)
            yield run


def forget_data() -> None:
    """Whatever this process knows of data sets: each run reads its own from disk."""
    for cached in (tasks_data._load, task_choice._load, task_choice._classes):
        cached.cache_clear()


def voted(study: Path, settings: StudySettings, task: int, steps: int, name: str, output: Path) -> Run:
    """`mvp-vote` of one task, as its command runs it."""
    config = vote_config(study, settings, task, steps, VOTES[name], output)
    forget_data()
    clock = Clock()
    with ExitStack() as stack:
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


def vote_config(
    study: Path, settings: StudySettings, task: int, steps: int, shortlist: int | None, output: Path
) -> DictConfig:
    """The configuration of `mvp-vote` on a study's zoo, with the study's data, tasks, optimizer and neighbours."""
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        config = compose("vote", overrides=[f"steps={steps}"])
    with open_dict(config):
        config.zoo, config.output = str(study / "zoo"), str(output)
        config.data = {**settings.data, "batch_size": settings.batch_size, "augment": "none"}
        config.split.update({**settings.split, "kind": settings.target_kind, "task": task})
        config.optim = settings.optim
        config.seed = settings.seed
        config.vote.neighbours = settings.vote.get("neighbours", 8)
        config.vote.shortlist = shortlist
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
    module = TaskModule.for_task(begin.backbone, data.facts, **settings.optim)
    with clock.part("ridge head"):
        module.initialise_head(data)
    with clock.part("steps"):
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
    methods = list(dict.fromkeys((run.method, run.steps) for run in runs if run.method in VOTES))
    methods += sorted({(run.method, run.steps) for run in runs if run.method not in VOTES})
    shown_in = table(f"A new task: {title}", "method", "steps", "seconds", "test accuracy, %", "tasks")
    for method, steps in methods:
        own = [run for run in runs if (run.method, run.steps) == (method, steps)]
        accuracy = statistics.mean(run.accuracy for run in own)
        seconds = shown(summary([run.seconds for run in own], seed), 1)
        shown_in.add_row(method, f"{steps:,}", seconds, f"{100 * accuracy:.1f}", str(len(own)))
    by_task = [[run for run in runs if run.task == task] for task in sorted({run.task for run in runs})]
    ratios: dict[str, Any] = {}
    gains = table(f"Time to the vote's accuracy: {title}", "rival", "seconds", "× the vote", "reached")
    for rival in RIVALS:
        own = [run for run in runs if run.method == rival]
        wanted = statistics.mean(run.accuracy for run in runs if run.method == "mvp-vote")
        seconds_to, reached = time_to(own, wanted)
        ratio = speed_up(runs, "mvp-vote", rival)
        low, high = bootstrap(
            by_task,
            lambda drawn, rival=rival: speed_up([run for part in drawn for run in part], "mvp-vote", rival),
            seed,
        )
        stats = {"median": ratio, "low": low, "high": high}
        ratios[rival] = {**stats, "seconds": seconds_to, "reached": reached}
        gains.add_row(rival, f"{seconds_to:.1f}", shown(stats, 1), "yes" if reached else "no, not with any budget")
    parts = table(f"What a vote's seconds go to: {title}", "stage", "seconds", "share", "all entries scored: seconds")
    votes = [[run for run in runs if run.method == name] for name in VOTES]
    means = [{s: statistics.mean(run.stages.get(s, 0.0) for run in own) for s in own[0].stages} for own in votes]
    for stage in sorted(means[0], key=lambda stage: -means[0][stage]):
        share = means[0][stage] / sum(means[0].values())
        parts.add_row(stage, f"{means[0][stage]:.2f}", f"{share:.0%}", f"{means[1].get(stage, 0.0):.2f}")
    measured = {"ratios": ratios, "stages": dict(zip(VOTES, means, strict=True)), "runs": [asdict(run) for run in runs]}
    return [shown_in, gains, parts], measured
