"""Masks of a model that any other method pruned, written when fit ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from typing_extensions import override

from lightning_mvp.agreement import on_rank_zero
from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.inputs import as_inputs
from lightning_mvp.callbacks.resolve import example_inputs, resolve_module
from lightning_mvp.lightning_internals import require_lightning
from lightning_mvp.pruning.zeros import masks_from_zeros


class MaskExport(L.Callback):
    """Writes the masks of the current model at fit end, whoever pruned it.

    A unit is dropped if, and only if, all its producer entries are 0; ``torch.nn.utils.prune`` is honoured.

    Args:
        path: the safetensors file to write; must not exist.
        backbone: dotted name of the backbone in the LightningModule.
        example_input: a batch of images; default: ``module.example_input_array``.

    Raises:
        FileExistsError: at setup, if ``path`` exists.
        ValueError: at setup without an example input; at fit end if the model was cut physically meanwhile.

    Example:
        >>> MaskExport("masks.safetensors").path.name
        'masks.safetensors'
    """

    def __init__(self, path: str | Path, backbone: str = "backbone", example_input: Any = None) -> None:
        self.path, self.backbone_name = Path(path), backbone
        self.example_input: tuple[Tensor, ...] | None = None if example_input is None else as_inputs(example_input)
        self._groups: Groups | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called first: finds the groups of the dense model."""
        require_lightning(trainer)
        if stage != "fit":
            return
        on_rank_zero(trainer, self._require_new)
        example = example_inputs(self.example_input, pl_module)
        if example is None:
            raise ValueError(
                "Expected argument `example_input` to be a batch of images, but got None, and the module has no "
                "`example_input_array` either."
            )
        # Groups are those of the dense model: found now, read off at the end.
        self._groups = find_groups(resolve_module(pl_module, self.backbone_name, "backbone"), example)

    def _require_new(self) -> None:
        if self.path.exists():
            raise FileExistsError(
                f"Expected argument `path` to be a new file, but {self.path} exists. Remove it first."
            )

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called when fit ends without an error: rank 0 writes."""
        assert self._groups is not None
        backbone, groups = resolve_module(pl_module, self.backbone_name, "backbone"), self._groups
        on_rank_zero(trainer, lambda: masks_from_zeros(backbone, groups).save(self.path))
