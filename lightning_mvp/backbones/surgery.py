"""A physically smaller backbone, cut by our own index maps.

Torch-Pruning's ``prune()`` is not used: it makes new Parameters in place and loses ``channels_last``. Besides, the
self-check proves the index maps that cut, and they must be those by which masks, zoo entries and merged weights are
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_mvp.backbones.attention import set_heads
from lightning_mvp.backbones.copies import detached_copy
from lightning_mvp.backbones.features import classifier_name, evaluating
from lightning_mvp.backbones.masks import require_masks_fit
from lightning_mvp.backbones.units import Groups


def slice_tensor(tensor: Any, kept: tuple[np.ndarray | None, ...]) -> Any:
    """The kept entries of a torch tensor or NumPy array, in its memory format.

    Args:
        tensor: of any shape.
        kept: for each axis the entries that stay, or None for all.

    Returns:
        The same kind of tensor, always a copy.

    Example:
        >>> slice_tensor(np.arange(6).reshape(2, 3), (None, np.array([0, 2])))
        array([[0, 2],
               [3, 5]])
    """
    if isinstance(tensor, np.ndarray):
        axes = [np.arange(size) if index is None else index for size, index in zip(tensor.shape, kept, strict=True)]
        return tensor[np.ix_(*axes)] if axes else tensor.copy()
    channels_last = (
        tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    result = tensor.detach().clone()
    for axis, index in enumerate(kept):
        if index is not None:
            result = result.index_select(axis, torch.from_numpy(index).to(result.device))
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def slice_state(state: Mapping[str, Any], groups: Groups, masks: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the small backbone, cut out of a dense one's. Pure.

    Args:
        state: name → full-size torch tensor or NumPy array.
        groups: the backbone's groups.
        masks: one for each group.

    Returns:
        name → kept entries only, copies, in the same order.
    """
    require_masks_fit(groups, masks)
    return {name: slice_tensor(tensor, groups.kept(name, tuple(tensor.shape), masks)) for name, tensor in state.items()}


def _replace_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, attribute)
    new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(owner, attribute, new)


def _update_sizes(module: nn.Module) -> None:
    """Make a layer's attributes say what its tensors' shapes are."""
    if isinstance(module, _ConvNd) and module.transposed:  # one with several conv groups is never cut
        if module.groups == 1:
            module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, _ConvNd):
        if module.groups > 1:  # conv groups are removed whole, each with its outputs
            module.groups = module.weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        tensor = module.weight if module.weight is not None else module.running_mean
        if tensor is not None:
            module.num_features = len(tensor)


def _update_feature_count(small: nn.Module, groups: Groups, masks: Mapping[str, Any]) -> None:
    """Make the attributes that timm reads to make a new classifier say how many features are left."""
    names = [name for name in ("head_hidden_size", "num_features") if isinstance(getattr(small, name, None), int)]
    classifier = classifier_name(small)
    if not names:
        return
    # The first name counts the backbone's output features. The second may count those before a last convolution.
    dense = getattr(small, names[0])
    if classifier is not None:
        linear: Any = small.get_submodule(classifier)
        left = int(linear.weight.shape[1])
    else:
        left = len(groups.kept_features(masks, dense))
    for name in names:
        if getattr(small, name) == dense:
            setattr(small, name, left)


def shrink(backbone: nn.Module, groups: Groups, masks: Mapping[str, Any]) -> nn.Module:
    """A smaller copy of the backbone, without the units that the masks remove.

    Weights, dtype, device, memory format, ``requires_grad`` and training flags stay; gradients are dropped. Where the
    backbone has a ``.recipe``, the copy's says how many units were kept, so that it can be built again.

    Args:
        backbone: the dense backbone; not changed.
        groups: its groups.
        masks: one for each group.

    Returns:
        The small backbone. If a group is the output, it has fewer features: ``groups.kept_features``.

    Raises:
        ValueError: masks of another backbone.

    Example:
        >>> from lightning_mvp.backbones import find_groups, random_masks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, torch.zeros(1, 3, 8, 8)).select(include=["0"])
        >>> shrink(net, groups, random_masks(groups, 0.5, seed=0))
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    require_masks_fit(groups, masks)
    small = detached_copy(backbone)
    small.zero_grad(set_to_none=True)
    state = {name: tensor for name, tensor in small.state_dict(keep_vars=True).items() if name in groups.layout}
    resize(small, groups, masks, slice_state(state, groups, masks))
    _update_feature_count(small, groups, masks)
    recipe = getattr(small, "recipe", None)
    if isinstance(recipe, dict):
        small.recipe = {**recipe, "kept": _widths(masks)}  # type: ignore[assignment]
    return small


def resize(module: nn.Module, groups: Groups, masks: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Give a backbone other tensors, of the sizes that masks leave, in place: `shrink` without its copy.

    One copy may so serve many masks in turn, as when every model of a zoo is run on the same images.

    Args:
        module: the dense backbone, or one that was resized before. Its ``recipe`` and timm's attributes for new
            classifiers stay as they are.
        groups: of the dense backbone.
        masks: one for each group.
        state: the kept entries of the tensors in groups, by state dict name; others stay as they are.
    """
    for name, tensor in state.items():
        _replace_tensor(module, name, tensor)
    for each in module.modules():
        _update_sizes(each)
    kept = _widths(masks)
    for group in groups:
        if group.kind == "heads":
            set_heads(module.get_submodule(group.name.removesuffix("heads").removesuffix(".")), kept[group.name])


def _widths(masks: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(torch.as_tensor(mask).sum()) for name, mask in masks.items()}


def without_sync(module: nn.Module, inputs: Sequence[Tensor] = ()) -> nn.Module:
    """Turn synchronised batch norms, which train only under DDP on GPUs, into plain ones in place.

    timm's synchronised norms with an activation inside stay: in eval mode they compute the same anywhere.

    Args:
        module: any; changed in place.
        inputs: of one forward pass, which shows whether a norm gets ``(N, C)`` or ``(N, C, L)``, images or volumes.
            Without, images are assumed.

    Returns:
        The module, or its replacement if it is a batch norm itself.

    Example:
        >>> type(without_sync(nn.Sequential(nn.SyncBatchNorm(4)))[0]).__name__
        'BatchNorm2d'
    """
    synchronised = [part for part in module.modules() if type(part) is nn.SyncBatchNorm]
    axes: dict[nn.Module, int] = {}
    if synchronised and len(inputs):
        note = lambda part, given: axes.update({part: given[0].ndim})  # noqa: E731
        with evaluating(module), ExitStack() as hooks:
            for part in synchronised:
                hooks.enter_context(part.register_forward_pre_hook(note))
            module(*inputs)

    def local(part: nn.Module) -> nn.Module:
        if type(part) is nn.SyncBatchNorm:
            kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(axes.get(part, 4), nn.BatchNorm2d)
            norm = kind(part.num_features, part.eps, part.momentum, part.affine, part.track_running_stats)
            # The same tensor objects are kept, with their dtype, device and memory.
            norm._parameters, norm._buffers = part._parameters, part._buffers
            return norm.train(part.training)
        for name, child in part.named_children():
            part.add_module(name, local(child))
        return part

    return local(module)
