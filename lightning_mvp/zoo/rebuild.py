"""From the arrays of a zoo back to modules: the dense θ⁰, and the small model of an entry. The only part with torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.surgery import resize, shrink
from lightning_mvp.backbones.units import Groups
from lightning_mvp.backbones.weights import load_tensors
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.zoo import ModelZoo


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Name → tensor on the CPU, copied, so that nothing done to the tensors reaches the arrays."""
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def dense_backbone(zoo: ModelZoo, backbone: nn.Module | None = None) -> nn.Module:
    """A new dense backbone with the zoo's θ⁰, in eval mode; `backbone` is copied, else the zoo's recipe is built.

    Raises:
        ValueError: The zoo has no recipe and no `backbone` is given, or the backbone is another one than the zoo's.
    """
    if backbone is None:
        if zoo.recipe is None:
            raise ValueError(
                f"The zoo at {zoo.path} has no backbone recipe. Pass its backbone as "
                "`backbone`; with mvp-vote and mvp-export give backbone.target=package.module:function."
            )
        dense = create_backbone(zoo.recipe)
    else:
        dense = copy.deepcopy(backbone)
    if classifier_name(dense) is not None:
        dense.reset_classifier(0)  # type: ignore[operator]  # timm's: no part of θ⁰
    theta0 = as_tensors(zoo.theta0())
    expected = {name: tuple(value.shape) for name, value in theta0.items()}
    state = dense.state_dict().items()
    got = {name: tuple(value.shape) for name, value in state if isinstance(value, Tensor)}
    differing = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The zoo at {zoo.path} is of another backbone: {len(differing)} tensors differ, first {name!r}: "
            f"expected shape {expected.get(name)}, got {got.get(name)}. Pass the zoo's own backbone."
        )
    load_tensors(dense, theta0)
    return dense.eval()


def entry_masks(entry: ZooEntry) -> Masks:
    """The masks of an entry as `Masks`."""
    return Masks(as_tensors(entry.masks))


def require_fits(entry: ZooEntry, backbone: nn.Module, groups: Groups) -> None:
    """Refuse an entry whose weights are not what its masks leave of the backbone: a zoo alone can't tell.

    Args:
        entry: An entry of a zoo.
        backbone: The dense backbone; only the shapes of its tensors matter.
        groups: The groups of that backbone.

    Raises:
        DamagedEntryError: A tensor does not fit; the message names the entry and the first such tensor.
    """
    sizes = {group: len(mask) for group, mask in entry.masks.items()}
    if sizes != groups.sizes:
        raise DamagedEntryError(
            f"Expected entry {entry.name!r} to have masks of {groups.sizes}, but got {sizes}. Is it another backbone's?"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    for name in sorted(shapes.keys() | entry.weights.keys()):
        expected = None
        if name in shapes:
            kept = groups.kept(name, shapes[name], entry.masks)
            expected = tuple(
                size if index is None else len(index) for size, index in zip(shapes[name], kept, strict=True)
            )
        got = entry.weights[name].shape if name in entry.weights else None
        if got != expected:
            raise DamagedEntryError(
                f"Expected weight {name!r} of entry {entry.name!r} to have shape {expected}, which its masks leave of "
                f"the backbone's, but got {got}. Remove the entry from its zoo and prune this task again."
            )


def rebuild(entry: ZooEntry, backbone: nn.Module, groups: Groups) -> tuple[nn.Module, nn.Linear | None]:
    """The small model of an entry, bit-equal to the one that was stored.

    Args:
        entry: An entry of a zoo.
        backbone: The dense backbone; only its structure matters, and it is not changed.
        groups: The groups of that backbone.

    Returns:
        The small backbone in eval mode, and its head (None if the entry has none).

    Raises:
        DamagedEntryError: The weights of the entry do not fit its masks.
    """
    require_fits(entry, backbone, groups)
    small = shrink(backbone, groups, entry_masks(entry))
    load_tensors(small, as_tensors(entry.weights))
    return small.eval(), _head(entry)


def refill(scratch: nn.Module, entry: ZooEntry, groups: Groups) -> nn.Linear | None:
    """Turn a copy of the backbone into an entry's model, in place, and return its head: many entries need one copy.

    Args:
        scratch: A copy of the dense backbone in eval mode, or what earlier calls made of it.
        entry: An entry that :func:`require_fits` has let pass.
        groups: The groups of the dense backbone.
    """
    device = next(scratch.parameters()).device
    state = {name: tensor.to(device) for name, tensor in as_tensors(entry.weights).items()}
    resize(scratch, groups, entry_masks(entry), state)
    return _head(entry)


def _head(entry: ZooEntry) -> nn.Linear | None:
    if not entry.head:
        return None
    classes, features = entry.head["weight"].shape
    head = nn.Linear(features, classes, bias="bias" in entry.head)
    head.load_state_dict(as_tensors(entry.head))
    return head.eval()
