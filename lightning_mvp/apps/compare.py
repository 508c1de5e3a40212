"""``mvp-compare``: MVP against pruning from scratch and its controls; a table, a report, pictures and every run."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_mvp.apps.job import command
from lightning_mvp.apps.runtime import console, plain, trainer_of
from lightning_mvp.apps.task_choice import data_arguments, split_arguments

if TYPE_CHECKING:
    from lightning_mvp.study.study_settings import StudySettings


def build_settings(config: DictConfig) -> StudySettings:
    """The study that a configuration describes. Settings not named here are keys of `conf/compare.yaml`."""
    from lightning_mvp.study.study_settings import StudySettings

    data = data_arguments(config)
    if data.get("image_size") is None and data["name"] in ("imagefolder", "huggingface"):
        data["image_size"] = config.backbone.recipe.input_size  # a study holds its images, all of one size, in memory
    values: dict[str, Any] = {
        "data": data,
        "split": split_arguments(config),
        "recipe": plain(config.backbone.recipe),
        "weights": config.backbone.weights,
        "pretrained": config.backbone.pretrained,
        "batch_size": config.data.batch_size,
        "augment": config.data.augment,
        "methods": tuple(config.methods),
        "precision": config.trainer.precision,
        "gradient_clip": config.trainer.gradient_clip_val,
    }
    for name in {field.name for field in fields(StudySettings)} - set(values):
        values[name] = plain(config[name]) if isinstance(config[name], DictConfig) else config[name]
    return StudySettings(**values)


def run(config: DictConfig) -> float:
    """Run those parts of the chosen stages that are not done yet, write the report, return MVP's mean accuracy."""
    from lightning_mvp.study.run_study import run_study

    if config.redraw:
        return redraw_reports(config)
    if config.reports:
        return page(config)
    refuse_other_devices(config)
    settings, folder = build_settings(config), Path(config.folder)
    share = {"shard": config.shard, "shards": config.shards}
    pool = [Path(other) for other in config.pool]
    if not pool:
        run_study(folder, settings, workers=config.workers, stages=list(config.stages), console=console, **share)
    if "report" not in config.stages or config.shards > 1:
        return 0.0
    return report(config, folder, pool)


def refuse_other_devices(config: DictConfig) -> None:
    """Refuse other devices than the CPU: a study trains in processes of one CPU thread each.

    Only precision and clipping are taken from ``trainer``.

    Raises:
        ValueError: another device, several devices, or a precision that this machine does not have.
    """
    own = {name: config.trainer[name] for name in ("accelerator", "devices", "strategy")}
    if own != {"accelerator": "cpu", "devices": 1, "strategy": "auto"}:
        raise ValueError(
            "Expected strategy=cpu, because a study trains on one CPU thread in each of its workers, but got "
            + ", ".join(f"trainer.{name}={value}" for name, value in own.items())
            + ". Leave strategy out and set workers=NUMBER."
        )
    trainer_of({"precision": config.trainer.precision})


def page(config: DictConfig) -> float:
    """Write one page over finished reports; return the mean accuracy of its first row."""
    from lightning_mvp.study.summary_page import write_page

    out, reports = Path(config.folder), [Path(folder) for folder in config.reports]
    accuracy = write_page(out, reports, **words(config))
    list_files(out, "report.md")
    return accuracy


def redraw_reports(config: DictConfig) -> float:
    """Draw the pictures of finished reports anew; nothing is measured, so the answer is 0."""
    from lightning_mvp.study.study_pictures import redraw

    for folder in map(Path, config.redraw):
        for name in redraw(folder):
            console.print(f"wrote {folder / name}", markup=False)
    return 0.0


def words(config: DictConfig) -> dict[str, str]:
    """A report's words besides its figures: a note, the command that repeats it, and what people learned from it."""
    return {
        "note": config.note,
        "command": shlex.join(["mvp-compare", *sys.argv[1:]]) if config.command is None else config.command,
        "learned": "" if config.learned is None else Path(config.learned).read_text(encoding="utf-8").strip(),
    }


def list_files(folder: Path, *names: str) -> None:
    """Print which files were written: these, and all pictures."""
    for name in (*names, *sorted(path.name for path in folder.glob("*.png"))):
        console.print(f"wrote {folder / name}", markup=False)


def report(config: DictConfig, folder: Path, pool: list[Path]) -> float:
    """Write the report of one study, or of several that are pooled."""
    from lightning_mvp.study.finished_study import Study
    from lightning_mvp.study.report_paragraphs import results_table, verdicts
    from lightning_mvp.study.study_report import write_report

    studies = [Study.read(other) for other in pool or [folder]]
    rows = write_report(folder, studies, **words(config))
    if rows:
        console.print(results_table(rows, f"{data_arguments(config)['name']}: {studies[0].settings.targets} new tasks"))
    for sentence in (*verdicts(rows), config.note):
        console.print(sentence, highlight=False, markup=False)
    list_files(folder, "report.md", "results.json", "results.jsonl")
    return next((row.accuracy.mean for row in [*(row for row in rows if row.method == "mvp"), *rows]), 0.0)


main = command("compare")

if __name__ == "__main__":
    main()
