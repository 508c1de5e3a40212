"""``mvp-export``: a small model as safetensors, torch.export and ONNX, with a report against the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lightning_mvp.apps.job import command
from lightning_mvp.apps.runtime import console, plain

if TYPE_CHECKING:
    from lightning_mvp.export.source import Source


def source_of(config: DictConfig) -> Source:
    """The model that ``checkpoint``, ``folder`` or ``zoo`` and ``entry`` name.

    Raises:
        ValueError: none of them is given, or more than one.
    """
    from lightning_mvp.export.source import from_checkpoint, from_folder, from_zoo

    given = [name for name in ("checkpoint", "folder", "zoo") if config[name] is not None]
    if len(given) != 1:
        raise ValueError(
            "Expected one of checkpoint=FILE, folder=FOLDER (as mvp-vote writes it) or zoo=FOLDER entry=NAME, but got "
            f"{' and '.join(given) or 'none of them'}."
        )
    if config.checkpoint is not None:
        return from_checkpoint(config.checkpoint)
    if config.folder is not None:
        return from_folder(config.folder)
    return from_zoo(config.zoo, config.entry)


def run(config: DictConfig) -> None:
    """Export, measure, report."""
    from lightning_mvp.export.export import FILES, export_model
    from lightning_mvp.export.formats import require_formats
    from lightning_mvp.folders import require_free

    require_formats(config.formats)
    source = source_of(config)
    output = Path(config.output or Path(config.paths.root, "exported", source.name))
    require_free(output, FILES, config.overwrite)
    formats, measure = list(config.formats), plain(config.measure)
    options = {"threads": config.threads, "device": config.device, "overwrite": config.overwrite, **measure}
    report = export_model(source, output, formats=formats, **options)
    console.print(report)
    for name, what in (
        ("model.safetensors", "the weights"),
        ("recipe.json", "the architecture, the classes and the preprocessing"),
        ("load.py", "rebuilds the model from these two with torch, timm and safetensors: load(folder)"),
        ("model.pt2", "torch.export.load(path).module(), for any number of images"),
        ("model.onnx", "for ONNX runtimes, any number of images"),
        ("report.json", "sizes, memory, measured seconds"),
    ):
        if (output / name).exists():
            console.print(f"wrote {output / name}: {what}")


main = command("export")

if __name__ == "__main__":
    main()
