"""A comparison from start to end: worker processes run the parts that have no record yet."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.layout import training_layout
from lightning_mvp.study.check_study import refuse_bad_settings
from lightning_mvp.study.plan import PlannedPart, Waves, generic_models, parts_of_shard, plan
from lightning_mvp.study.records import open_study, read_record, read_settings
from lightning_mvp.study.study_settings import STAGES, StudySettings
from lightning_mvp.study.worker import run_part, start_worker
from lightning_mvp.study.zoo_fingerprints import keep_fingerprints, zoo_fingerprints
from lightning_mvp.words import counted

TELL_EVERY = 60.0  # seconds between two lines about how far a study is, where its output is no terminal


def run_study(
    folder: Path,
    settings: StudySettings,
    *,
    workers: int = 2,
    stages: Sequence[str] = STAGES,
    shard: int = 0,
    shards: int = 1,
    console: Console | None = None,
) -> None:
    """Run all parts that have no record yet. Stopped at any moment, the same call goes on where it was.

    Args:
        folder: of the study, with ``settings.json``, ``theta0.safetensors``, ``zoo/``, ``generic/`` and ``runs/``.
        settings: of the study.
        workers: processes of one thread each.
        stages: some of :data:`~lightning_mvp.study.study_settings.STAGES`. A stage that needs parts of others is
            refused without them.
        shard: the number of this job among those that share a folder, in 0..shards-1; each does a share of each stage.
        shards: how many jobs there are.
        console: for the progress display.

    Raises:
        FileExistsError: the folder holds a study with other settings.
        ValueError: settings that can't work, an unknown stage, or one whose parts from earlier stages are missing.
            Then nothing is written.
        ChildProcessError: a part failed, which is named; finished parts stay.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"Expected argument `stages` to be some of {', '.join(STAGES)}, but got {list(stages)}.")
    if not 0 <= shard < shards:
        raise ValueError(f"Expected argument `shard` to be in 0..{shards - 1}, but got {shard} of `shards`={shards}.")
    refuse_bad_settings(settings)
    everything = plan(settings)
    _require_forerunners(folder, settings, everything, stages, shards)
    open_study(folder, settings)
    staged = [(stage, wave) for stage in everything if stage in stages for wave in everything[stage]]
    shares = [(stage, parts_of_shard(wave, shard, shards)) for stage, wave in staged]
    todo = [(stage, [part for part in wave if read_record(folder, part.name) is None]) for stage, wave in shares]
    console = console or Console()
    every, left = (sum(len(wave) for _, wave in waves) for waves in (shares, todo))
    told = f"{counted(every, 'part')} in {folder} ({', '.join(stages)})"
    console.print(f"{told}: {every - left} done already; {counted(workers, 'worker')}.")
    if left:
        _run_waves(folder, settings, todo, workers, console)


def _run_waves(
    folder: Path, settings: StudySettings, todo: list[tuple[str, list[PlannedPart]]], workers: int, console: Console
) -> None:
    """Run the waves one after the other. No target may change the zoos, so they are compared before and after."""
    cost, left = sum(part.cost for _, wave in todo for part in wave), sum(len(wave) for _, wave in todo)
    seconds = cost * seconds_per_step(settings) / min(workers, max(len(wave) for _, wave in todo))
    console.print(
        f"About {timedelta(seconds=round(seconds))} for the other {left} on this machine, by six timed steps."
    )
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[done]}/{task.fields[parts]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    start, context = (str(folder), settings.to_dict()), multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=start)
    shown, told = console.is_terminal, time.monotonic()
    with Progress(*columns, console=console, speed_estimate_period=300, disable=not shown) as progress:
        bar = progress.add_task("starting", total=cost, done=0, parts=left)
        done, zoos, before = 0, Path(settings.zoo_of or folder), None
        try:
            for stage, wave in todo:
                if stage == "compare" and before is None:
                    before = zoo_fingerprints(zoos)
                for part in _finish(pool, wave):
                    if part is not None:
                        done += 1
                        progress.update(bar, advance=part.cost, description=part.name, done=done)
                    if not shown and (time.monotonic() - told >= TELL_EVERY or done == left):
                        told = time.monotonic()
                        console.print(_how_far(stage, progress.tasks[bar], done, left))
        except BaseException:
            # Without this, parts that wait in the queue would still be run before the error is shown.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    pool.shutdown()
    if before is not None:
        keep_fingerprints(folder, before, zoo_fingerprints(zoos))


def _how_far(stage: str, task: Task, done: int, parts: int) -> str:
    """A line for a log file, where no bar can move."""
    elapsed, left = (
        None if seconds is None else timedelta(seconds=round(seconds))
        for seconds in (task.elapsed, task.time_remaining)
    )
    rest = "" if left is None or done == parts else f", about {left} left"
    return f"{stage}: {done} of {parts} parts done ({task.percentage:.0f} %) after {elapsed}{rest}"


def _require_forerunners(
    folder: Path, settings: StudySettings, everything: dict[str, Waves], stages: Sequence[str], shards: int
) -> None:
    """Refuse a stage that needs parts of earlier stages, where they are neither done nor part of this call."""
    order = ["pretrain", "zoo", "grow"]
    for stage in (stage for stage in STAGES if stage in stages and stage != "pretrain"):
        for before in {"zoo": order[:1], "grow": order[:2], "overlap": order[:2]}.get(stage, order):
            missing = _missing(folder, everything[before])
            if missing and (before not in stages or shards > 1):
                raise ValueError(
                    f"Expected stage {before!r} to be done before {stage!r}, but {len(missing)} of its parts are "
                    f"missing in {folder}, first {missing[0]!r}. Run stages=[{before}] first"
                    + (", by all shards." if shards > 1 else ".")
                )
    if settings.home is not None:
        _require_other_study(Path(settings.home), settings)


def _missing(folder: Path, waves: Waves) -> list[str]:
    return [part.name for wave in waves for part in wave if read_record(folder, part.name) is None]


def _require_other_study(folder: Path, settings: StudySettings) -> None:
    """Refuse to build on another study that is not finished, or that began with something else."""
    name = "begins_with" if settings.zoo_of is None else "zoo_of"
    other, shared = read_settings(folder), ["recipe", "parent"]
    parts = plan(other)
    missing = _missing(folder, parts["pretrain"])
    if settings.zoo_of is not None:
        shared += ["pruning", "source_steps", "new_images", "entries", "growths"]
        missing += [*_missing(folder, parts["zoo"]), *_missing(folder, parts["grow"])]
        missing += [part for part in generic_models(settings) if read_record(folder, part) is None]
    different = [key for key in shared if getattr(other, key) != getattr(settings, key)]
    if different:
        lines = "; ".join(f"{key}: {getattr(other, key)!r} there, {getattr(settings, key)!r} here" for key in different)
        raise ValueError(
            f"Expected the study in `{name}`={folder} to have the same {', '.join(shared)}, but got {lines}."
        )
    drawn = {key: (other.split.get(key), settings.split.get(key)) for key in ("seed", "held_out_fraction")}
    if other.data == settings.data and any(there != here for there, here in drawn.values()):
        lines = "; ".join(f"split.{key}: {there} there, {here} here" for key, (there, here) in drawn.items())
        raise ValueError(
            f"Expected the study in `{name}`={folder}, of the same data, to hold out the same classes, but got {lines}."
        )
    if missing:
        raise ValueError(
            f"Expected the study in `{name}`={folder} to be finished, but it lacks {len(missing)} parts, first "
            f"{missing[0]!r}. Run its stages pretrain, zoo and grow first, with the same methods."
        )


def seconds_per_step(settings: StudySettings) -> float:
    """The median time of six steps of the dense backbone, in this process, for an estimate."""
    recipe = settings.recipe
    backbone = create_backbone(recipe)
    layout = training_layout(backbone)
    backbone.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(settings.batch_size, recipe.get("in_chans", 3), recipe["input_size"], recipe["input_size"])
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        backbone(images.contiguous(memory_format=layout)).square().mean().backward()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _finish(pool: ProcessPoolExecutor, stage: list[PlannedPart]) -> Iterator[PlannedPart | None]:
    """Run a stage's parts, yielding each as it ends, and None where none has ended for a while."""
    running: dict[Future[Any], PlannedPart] = {pool.submit(run_part, part.name): part for part in stage}
    while running:
        ended = wait(running, timeout=TELL_EVERY, return_when=FIRST_COMPLETED).done
        if not ended:
            yield None
        for future in ended:
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
