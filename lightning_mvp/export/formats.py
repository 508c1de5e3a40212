"""Files of an exported model; each is read again and compared with the model."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import timm
import torch
from torch import Tensor

from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.export import standalone
from lightning_mvp.export.source import Source
from lightning_mvp.files import write_json

Format = Literal["safetensors", "pt2", "onnx"]
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit
REBUILT_TOLERANCE = 1e-6  # smaller, since the same kernels run; only the order of sums in threads may differ
EXAMPLE_BATCH = 2  # an exporter would take a batch size of 1 for a constant
BATCHES = (1, 3)  # at which exported models are compared with the model


def require_formats(formats: Sequence[str]) -> None:
    """Refuse formats that can't be written, before any work.

    Raises:
        ValueError: A format is unknown, or safetensors is not among them.
        ImportError: The packages that ONNX needs are not installed.

    Example:
        >>> require_formats(["safetensors", "coreml"])
        Traceback (most recent call last):
        ...
        ValueError: Expected `formats` to be some of 'safetensors', 'pt2', 'onnx', but got 'coreml'.
    """
    if isinstance(formats, str):
        raise ValueError(
            f"Expected `formats` to be a list, but got {formats!r}. Write formats=[safetensors,{formats}]."
        )
    for name in formats:
        if name not in get_args(Format):
            known = ", ".join(map(repr, get_args(Format)))
            raise ValueError(f"Expected `formats` to be some of {known}, but got {name!r}.")
    if "safetensors" not in formats:
        raise ValueError(
            f"Expected `formats` to hold 'safetensors', which the others are checked against, but got {list(formats)}."
        )
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if "onnx" in formats and missing:
        raise ImportError(
            f"Expected {', '.join(ONNX_PACKAGES)} for formats=[…,onnx], but {', '.join(missing)} is not installed. "
            "Install with: pip install 'lightning-mvp[onnx]'. Or go on without: formats=[safetensors,pt2]."
        )


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of our largest output.

    Example:
        >>> difference(torch.tensor([4.0, -8.0]), torch.tensor([4.0, -6.0]))
        0.25
    """
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny))


def require_parity(source: Source, run: Callable[[Tensor], Tensor], what: str, tolerance: float = TOLERANCE) -> float:
    """The largest difference between an exported model and the source's, at several batch sizes.

    Raises:
        ValueError: The difference is above the tolerance, or not a number.
    """
    worst = 0.0
    with torch.inference_mode():
        for batch in BATCHES:
            images = source.images(batch)
            found = difference(source.model(images), run(images))
            if not found <= tolerance:
                raise ValueError(
                    f"Expected {what} to compute what the model computes, to {tolerance:g} of the largest output, but "
                    f"at a batch of {batch} they differ by {found:.2g}. It is not exported; leave that format out."
                )
            worst = max(worst, found)
    return worst


def write_safetensors(source: Source, folder: Path) -> float:
    """Weights, recipe and the function that loads them, for which the folder needs only torch and timm."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(source.model, folder / "model.safetensors")
    versions = {"timm": timm.__version__, "torch": torch.__version__}
    write_json(folder / "recipe.json", {"recipe": source.recipe, "facts": source.facts.to_dict(), "versions": versions})
    shutil.copyfile(standalone.__file__, folder / "load.py")
    return require_parity(source, standalone.load(folder)[0], "what load.py loads", REBUILT_TOLERANCE)


def export_program(source: Source) -> torch.export.ExportedProgram:
    """The model as a graph with any number of images."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(source.model, (source.images(EXAMPLE_BATCH),), dynamic_shapes=shapes)


def write_pt2(source: Source, program: torch.export.ExportedProgram, folder: Path) -> float:
    """``model.pt2``, for ``torch.export.load(path).module()``."""
    torch.export.save(program, folder / "model.pt2")
    return require_parity(source, torch.export.load(folder / "model.pt2").module(), "model.pt2")


def write_onnx(source: Source, program: torch.export.ExportedProgram, folder: Path) -> float:
    """``model.onnx``, with input ``images`` and output ``logits``."""
    import onnxruntime

    path = folder / "model.onnx"
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # The exporters report each of their steps.
    try:
        torch.onnx.export(
            program,
            (source.images(EXAMPLE_BATCH),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        logging.disable(disabled)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return require_parity(source, run, "model.onnx")
