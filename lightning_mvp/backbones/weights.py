"""A module's weights as a safetensors file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_mvp.backbones.pretrained import KEY
from lightning_mvp.files import write_whole


def save_weights(
    module: nn.Module,
    path: str | Path,
    *,
    overwrite: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Write a module's state dict; folders on the way are made.

    Args:
        module: any.
        path: of the safetensors file.
        overwrite: whether it may replace a file.
        preprocessing: how the module sees images, for the file's metadata; None leaves it out.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is off.
    """
    # safetensors refuses tensors in another layout than row-major, and tensors that share memory, such as tied
    # weights. What a module's get_extra_state returns is no tensor, and is left out.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    metadata = None if preprocessing is None else {KEY: json.dumps(dict(preprocessing))}
    return write_whole(Path(path), save(state, metadata), overwrite=overwrite)


def load_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all tensors of a module, and leave what its ``get_extra_state`` keeps as it is.

    Args:
        module: changed in place.
        state: name → tensor, exactly the module's parameters and buffers.

    Raises:
        RuntimeError: names or shapes differ.

    Example:
        >>> load_tensors(nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    """
    extra = {name: value for name, value in module.state_dict().items() if not isinstance(value, Tensor)}
    module.load_state_dict({**extra, **state})
