"""``mvp-export``: a small model as safetensors, torch.export and ONNX, with a report against the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from lightning_mvp.apps.job import command
from lightning_mvp.apps.runtime import console, plain

if TYPE_CHECKING:
    import lightning as L

    from lightning_mvp.export.source import Source


def require_one_model(config: DictConfig) -> None:
    """Refuse none or several of ``checkpoint``, ``folder`` and ``zoo``.

    Raises:
        ValueError: the message says which were given.
    """
    given = [name for name in ("checkpoint", "folder", "zoo") if config[name] is not None]
    if len(given) != 1:
        raise ValueError(
            "Expected one of checkpoint=FILE, folder=FOLDER (as mvp-vote writes it) or zoo=FOLDER entry=NAME, but got "
            f"{' and '.join(given) or 'none of them'}."
        )


refuse_early = require_one_model


def source_of(config: DictConfig) -> Source:
    """The model that ``checkpoint``, ``folder`` or ``zoo`` and ``entry`` name.

    Raises:
        ValueError: none of them is given, or more than one.
    """
    from lightning_mvp.backbones.targets import trust_backbone
    from lightning_mvp.export.source import from_checkpoint, from_folder, from_zoo
    from lightning_mvp.tasks.facts import TaskFacts

    if config.backbone.target is not None:
        trust_backbone(config.backbone.target)
    require_one_model(config)
    if config.checkpoint is not None:
        module = None if config.module is None else module_of(config.module, config.checkpoint)
        facts = None if config.facts is None else TaskFacts.from_dict(plain(config.facts))
        return from_checkpoint(config.checkpoint, module, facts)
    if config.folder is not None:
        return from_folder(config.folder)
    return from_zoo(config.zoo, config.entry, config.backbone.target)


def module_of(named: str | DictConfig, checkpoint: str) -> L.LightningModule:
    """A LightningModule of the user's own, made with the hyper-parameters in its checkpoint.

    Args:
        named: the class as ``package.Class``, importable from here or from the present folder. It may also be a mapping
            with that as ``_target_`` and with arguments, which may be objects with a ``_target_`` of their own.
        checkpoint: its file.

    Raises:
        ImportError: there is no such class.
        ValueError: it is no LightningModule, or arguments are missing.
    """
    import lightning as L

    from lightning_mvp.callbacks.small_model import read_checkpoint

    read_checkpoint(checkpoint)  # a bad file is refused before anything is imported or made
    arguments = (
        {} if isinstance(named, str) else dict(hydra.utils.instantiate({**plain(named), "_target_": "builtins.dict"}))
    )
    target = named if isinstance(named, str) else named.get("_target_")
    kind = hydra.utils.get_object(target) if isinstance(target, str) else None
    if not isinstance(kind, type) or not issubclass(kind, L.LightningModule):
        raise ValueError(
            f"Expected `module` to name the class of a LightningModule, as module=package.Class or 'module={{_target_: "
            f"package.Class, argument: 1}}', but got {target!r}."
        )
    try:
        return kind.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True, **arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected {target} to be made of the hyper-parameters in {checkpoint}, but: {error}. Give what is "
            f"missing: 'module={{_target_: {target}, argument: 1}}'."
        ) from error


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
    threads = None if config.threads == "auto" else config.threads
    options = {"threads": threads, "device": config.device, "overwrite": config.overwrite, **measure}
    report = export_model(source, output, formats=formats, **options)
    console.print(report)
    for name, what in (
        ("model.safetensors", "the weights"),
        ("recipe.json", "the architecture, the classes and the preprocessing"),
        ("load.py", "model, transform = load(folder) from these two, with torch, timm and safetensors"),
        ("model.pt2", "torch.export.load(path).module(), for any number of images"),
        ("model.onnx", "for ONNX runtimes, any number of images"),
        ("report.json", "sizes, memory, measured seconds"),
        ("before_after.png", "the same as a picture"),
    ):
        if (output / name).exists():
            console.print(f"wrote {output / name}: {what}")


main = command("export")

if __name__ == "__main__":
    main()
