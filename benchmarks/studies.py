"""The studies whose zoos are measured: what `mvp-compare` left in a folder, or one of seconds for a smoke run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lightning_mvp.study.part_runner import PartRunner
from lightning_mvp.study.records import open_study, read_settings
from lightning_mvp.study.study_settings import StudySettings

TINY = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24]}, "input_size": 32}


def study_settings(study: Path, data: Path | None) -> StudySettings:
    """A study's settings, with its data where they are now."""
    settings = read_settings(study)
    if settings.zoo_of is not None:
        raise ValueError(f"Expected `--study` to have a zoo of its own, but its zoo is that of {settings.zoo_of}.")
    return settings if data is None else replace(settings, data={**settings.data, "root": str(data)})


def growth_parser(about: str | None, files: str) -> argparse.ArgumentParser:
    """Arguments of a benchmark of a study's grown zoos.

    Args:
        about: what it measures, its module's docstring.
        files: those that it writes.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study with a growth named A")
    parser.add_argument("--data", type=Path, help="where the study's data are now; default: where they were")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {files}")
    return parser


def small_study(folder: Path, sources: int, steps: int) -> Path:
    """A study of seconds: what it finds means nothing."""
    settings = StudySettings(
        data={"name": "glyphs", "characters": "ABDEHKMN", "per_class_train": 8, "per_class_val": 2},
        split={"classes_per_task": 3, "sources": sources, "targets": 2, "held_out_fraction": 0.0},
        recipe={"in_chans": 3, **TINY},
        pretrain={"steps": 4, "batch_size": 16},
        pruning={"criterion": "taylor", "pruning_ratio": 0.5, "rounds": 2},
        vote={"neighbours": 2},
        optim={"learning_rate": 0.02},
        steps=steps,
        source_steps=4,
        batch_size=10,
        methods=("mvp", f"taylor@{steps}", f"torch_pruning@{steps}"),
        precision="32-true",
    )
    open_study(folder, settings)
    runner = PartRunner(folder, settings)
    for part in ("pretrain", *(task.name for task in runner.split.source)):
        runner.run(part)
    return folder
