"""Weights of a module to a safetensors file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import nn

from lightning_mvp.files import write_whole


def save_weights(module: nn.Module, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a module's state dict; folders on the way are made.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is off.
    """
    # safetensors stores row-major bytes; channels_last is a matter of the process that runs the module.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return write_whole(Path(path), save(state), overwrite=overwrite)
