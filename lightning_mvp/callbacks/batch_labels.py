"""Which tensor of anybody's training batch says the classes of its images. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = ("label", "target", "class")


def find_labels(batch: Any, n: int, n_classes: int) -> dict[str, Tensor]:
    """All tensors of a batch that can be the classes of ``n`` images, the likeliest first, by their place in it.

    Class indices are integers ``(n,)`` or ``(n, 1)`` below ``n_classes``; negative ones mark images whose class is not
    known. Where there are none, 0 and 1 of any type are taken: ``(n,)`` or ``(n, 1)`` of two classes, or multi-hot
    ``(n, n_classes)``. What is called a label, target or class goes before other names, what comes first before what
    follows.

    Args:
        batch: tensors in tuples, lists, dicts and dataclasses.
        n: number of images.
        n_classes: number of classes of the task.

    Returns:
        Place → int64 ``(n,)``, or bool ``(n, n_classes)``, on the CPU; empty if there are none.

    Example:
        >>> batch = {"image": torch.zeros(2, 3, 8, 8), "id": torch.tensor([7, 12]), "label": torch.tensor([0, 2])}
        >>> find_labels(batch, n=2, n_classes=3)
        {'label': tensor([0, 2])}
    """
    found = []
    for order, (place, tensor) in enumerate(tensors_of(batch)):
        kind, labels = _as_classes(tensor, n, n_classes)
        if labels is not None:
            named = place.rpartition(".")[2].lower()
            likely = named == "y" or any(name in named for name in _NAMES)
            found.append(((kind, not likely, order), place, labels))
    return {place: labels for _, place, labels in sorted(found, key=lambda each: each[0])}


def _as_classes(tensor: Tensor, n: int, n_classes: int) -> tuple[int, Tensor | None]:
    """The labels and how likely such a tensor is to be some, the least number first."""
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    shape = tuple(tensor.shape)
    if shape not in ((n,), (n, n_classes)) or not n:
        return 0, None
    tensor = tensor.detach().cpu()
    binary = bool(((tensor == 0) | (tensor == 1)).all())
    if len(shape) == 2:
        return 1, tensor.bool() if binary else None
    if tensor.dtype == torch.bool or tensor.is_floating_point():
        return 2, tensor.long() if binary and n_classes == 2 else None
    return 0, tensor.long() if 0 <= int(tensor.max()) < n_classes else None


def tensors_of(batch: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in tuples, lists, dicts and dataclasses, each with its place in them."""
    if isinstance(batch, Tensor):
        yield place, batch
        return
    if isinstance(batch, Mapping):
        parts = list(batch.items())
    elif isinstance(batch, (tuple, list)):
        parts = list(enumerate(batch))
    else:
        parts = [(name, getattr(batch, name)) for name in getattr(batch, "__dataclass_fields__", ())]
    for name, part in parts:
        yield from tensors_of(part, f"{place}.{name}" if place else str(name))
