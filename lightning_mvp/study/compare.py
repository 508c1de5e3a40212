"""A comparison from start to end: plan its parts, run those not done yet in worker processes, show how far it is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_mvp.study.check import refuse_bad_settings
from lightning_mvp.study.parts import MORE_STEPS
from lightning_mvp.study.records import open_study, read_record
from lightning_mvp.study.settings import StudySettings
from lightning_mvp.study.worker import run_part, start_worker

# A step of a physically small model costs about this share of a dense one's; for the display of what is left.
SMALL_STEP = 0.35
# What a part costs besides its steps (groups, ridge head, evaluation), in dense steps.
OVERHEAD_STEPS = 60


@dataclass(frozen=True)
class Part:
    """One unit of work; ``cost`` is in dense steps, for the display."""

    name: str
    cost: float


def plan(settings: StudySettings) -> list[list[Part]]:
    """The parts of a comparison in stages; a stage needs those before it.

    Example:
        >>> settings = StudySettings({}, {"sources": 2, "targets": 1}, {}, methods=("mvp", "dense"))
        >>> [[part.name for part in stage] for stage in plan(settings)]
        [['pretrain'], ['source-000', 'source-001'], ['target-000--dense', 'target-000--mvp']]
    """
    pretrain = settings.pretrain.get("steps", 300) * settings.pretrain.get("batch_size", 128) / settings.batch_size
    entry = settings.source_steps + OVERHEAD_STEPS
    zoo = [Part(f"source-{index:03d}", entry) for index in range(settings.split["sources"])]
    if "generic" in settings.methods:
        zoo.append(Part("generic", 2 * entry))
    targets = []
    for index in range(settings.split["targets"]):
        for method in settings.methods:
            steps: float = settings.steps * (MORE_STEPS if method.endswith("_10x") else 1)
            if not method.startswith(("dense", "taylor")):
                steps *= SMALL_STEP
            targets.append(Part(f"target-{index:03d}--{method}", steps + OVERHEAD_STEPS))
    # The longest first: workers then finish together.
    return [[Part("pretrain", pretrain)], zoo, sorted(targets, key=lambda part: (-part.cost, part.name))]


def run_study(folder: Path, settings: StudySettings, *, workers: int = 2, console: Console | None = None) -> None:
    """Run all parts that have no record yet; stopped at any moment, the same call goes on where it was.

    Args:
        folder: of the study; holds ``settings.json``, ``theta0.safetensors``, ``zoo/``, ``generic/`` and ``runs/``.
        settings: of the study.
        workers: processes of one thread each.
        console: for the progress display.

    Raises:
        FileExistsError: the folder holds a study with other settings.
        ValueError: settings that can't work, before anything is written.
        ChildProcessError: a part failed, named; what was finished stays.
    """
    refuse_bad_settings(settings)
    open_study(folder, settings)
    stages = plan(settings)
    todo = [[part for part in stage if read_record(folder, part.name) is None] for stage in stages]
    console = console or Console()
    done = sum(map(len, stages)) - sum(map(len, todo))
    console.print(
        f"{sum(map(len, stages))} parts in {folder}: pre-training, {len(stages[1])} pruned models, "
        f"{len(stages[2])} runs on {settings.split['targets']} targets; {done} done already; {workers} worker(s)."
    )
    if not any(todo):
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=start_worker, initargs=(str(folder), settings.to_dict())
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=sum(part.cost for stage in todo for part in stage))
        try:
            for stage in todo:
                for part in _finish(pool, stage):
                    progress.update(bar, advance=part.cost, description=part.name)
        except BaseException:
            # Without this, parts that wait in the queue would still be run before the error is shown.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    pool.shutdown()


def _finish(pool: ProcessPoolExecutor, stage: list[Part]) -> Iterator[Part]:
    """Run a stage's parts, yielding each as it ends."""
    running: dict[Future[Any], Part] = {pool.submit(run_part, part.name): part for part in stage}
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            part = running.pop(future)
            try:
                future.result()
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"A worker process was ended from outside (out of memory?) at or about part {part.name}. Finished "
                    "parts are kept; the same command goes on from there."
                ) from None
            except Exception as error:
                raise ChildProcessError(
                    f"Part {part.name} failed: {type(error).__name__}: {error}\nFinished parts are kept; the same "
                    "command goes on from there. With LIGHTNING_MVP_TRACEBACK=1 it shows where this happened."
                ) from error
            yield part
