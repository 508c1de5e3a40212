"""``mvp-compare``: MVP against pruning from scratch and its controls; a table, a report, pictures and every run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lightning_mvp.apps.job import command
from lightning_mvp.apps.runtime import console, data_arguments, plain, split_arguments, trainer_of

if TYPE_CHECKING:
    from lightning_mvp.study.study_settings import StudySettings


def settings_of(config: DictConfig) -> StudySettings:
    """The study that a configuration describes."""
    from lightning_mvp.study.study_settings import StudySettings

    return StudySettings(
        data=data_arguments(config),
        split=split_arguments(config),
        recipe=plain(config.backbone.recipe),
        weights=config.backbone.weights,
        pretrained=config.backbone.pretrained,
        pretrain=plain(config.pretrain),
        pruning=plain(config.pruning),
        vote=plain(config.vote),
        optim=plain(config.optim),
        steps=config.steps,
        source_steps=config.source_steps,
        batch_size=config.data.batch_size,
        augment=config.data.augment,
        methods=tuple(config.methods),
        precision=config.trainer.precision,
        gradient_clip=config.trainer.gradient_clip_val,
        parent=None if config.parent is None else plain(config.parent),
        tuned=plain(config.tuned),
        trials=plain(config.trials),
        fewer=plain(config.fewer),
        superclasses=config.superclasses,
        begins_with=config.begins_with,
        zoo_of=config.zoo_of,
        target_kind=config.target_kind,
        images_per_class=config.images_per_class,
        new_images=config.new_images,
        entries=config.entries,
        growths=plain(config.growths),
        variants=plain(config.variants),
        label=config.label,
        seed=config.seed,
    )


def run(config: DictConfig) -> float:
    """Run what is not done yet of the stages asked for, write the report, return MVP's mean accuracy."""
    from lightning_mvp.study.run_study import run_study

    if config.reports:
        return page(config)
    refuse_other_devices(config)
    settings, folder = settings_of(config), Path(config.folder)
    share = {"shard": config.shard, "shards": config.shards}
    pool = [Path(other) for other in config.pool]
    if not pool:
        run_study(folder, settings, workers=config.workers, stages=list(config.stages), console=console, **share)
    if "report" not in config.stages or config.shards > 1:
        return 0.0
    return report(config, folder, pool)


def refuse_other_devices(config: DictConfig) -> None:
    """A study trains in processes of one CPU thread each; only precision and clipping are taken from ``trainer``.

    Raises:
        ValueError: another device, several, or a precision that can't be had here.
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
    """Write one page over reports that are there already; return MVP's mean accuracy in the first."""
    from lightning_mvp.study.summary_page import write_page

    out, reports = Path(config.folder), [Path(folder) for folder in config.reports]
    sections = write_page(out, reports, note=config.note, command=words(config), learned=learned(config))
    for name in ("report.md", *sorted(path.name for path in out.glob("*.png"))):
        console.print(f"wrote {out / name}", markup=False)
    return sections[0].mvp.accuracy.mean


def learned(config: DictConfig) -> str:
    """What people made of it."""
    return "" if config.learned is None else Path(config.learned).read_text(encoding="utf-8").strip()


def words(config: DictConfig) -> str:
    """The command that repeats what is reported."""
    return shlex.join(["mvp-compare", *sys.argv[1:]]) if config.command is None else config.command


def report(config: DictConfig, folder: Path, pool: list[Path]) -> float:
    """Write the report of one study, or of several that are pooled."""
    from lightning_mvp.study.finished_study import Study
    from lightning_mvp.study.report_paragraphs import results_table, verdicts
    from lightning_mvp.study.study_report import write_report

    studies = [Study.read(other) for other in pool or [folder]]
    rows = write_report(folder, studies, note=config.note, command=words(config), learned=learned(config))
    if rows:
        console.print(results_table(rows, f"{config.data.name}: {studies[0].settings.targets} new tasks"))
    for sentence in verdicts(rows):
        console.print(sentence, highlight=False, markup=False)
    console.print(config.note, highlight=False, markup=False)
    for name in ("report.md", "results.json", "results.jsonl", *sorted(path.name for path in folder.glob("*.png"))):
        console.print(f"wrote {folder / name}", markup=False)
    return next((row.accuracy.mean for row in [*(row for row in rows if row.method == "mvp"), *rows]), 0.0)


main = command("compare")

if __name__ == "__main__":
    main()
