"""Find the units of a backbone: which tensor entries can only be kept or removed together.

Channels and hidden neurons are found in Torch-Pruning's dependency graph, and whole attention heads by what timm's
attention modules are known to have. Both become the records of :mod:`lightning_mvp.backbones.units`, and are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.copies import cpu_copy, hooks_matter
from lightning_mvp.backbones.groups_cache import GroupsCache
from lightning_mvp.backbones.inputs import as_inputs, one_sample
from lightning_mvp.backbones.selfcheck import exact_groups
from lightning_mvp.backbones.trace import Tracer
from lightning_mvp.backbones.units import Groups, Kind, Member, Role, UnitGroup

__all__ = ["Groups", "Kind", "Member", "Role", "UnitGroup", "find_groups"]


def find_groups(backbone: nn.Module, example_input: Tensor | Sequence[Any], *, check: bool = True) -> Groups:
    """Find a backbone's groups of units.

    Convolution channels with their batch norms (those of a residual stage are one group), hidden neurons of MLPs, and
    whole attention heads. Of grouped and depthwise convolutions whole conv groups are units. What can't be masked
    exactly (channels under a LayerNorm or GroupNorm, other attention) is left out with a note in ``groups.skipped``. A
    timm classifier keeps its outputs. A layer of your own may have a method ``unit_groups(name)`` that returns a list
    of :class:`UnitGroup`, where ``name`` is the layer's name in the backbone; these are checked like all others.

    All work is done on a CPU copy: the backbone, its mode, hooks and gradients, and the global random state stay as
    they are. Only a backbone with forward hooks runs once itself, in eval mode, to be compared with its copy. What was
    found is remembered for all backbones of the same structure, whatever their weights: see
    :mod:`lightning_mvp.backbones.groups_cache`.

    Args:
        backbone: maps a batch of images to a tensor with features on axis 1, or to several tensors in a tuple, list or
            dict. Where there are several, units that reach one of them are in no group.
        example_input: images ``(N, C, H, W)`` or their shape; a tuple, for a backbone that takes several inputs.
        check: whether each group whose zeroed and cut versions disagree is left out, with a note.

    Returns:
        The groups in forward order, the same names in every process, with a note in ``groups.skipped`` for every other
        layer that has parameters.

    Raises:
        ValueError: the backbone does not take the example or returns no tensor, its hooks can't be copied, or nothing
            in it can be pruned; the message says why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> find_groups(net, torch.zeros(1, 3, 8, 8))
        Groups of 12 units:
          0: 8 units (conv)
          3: 4 units (conv)
    """
    inputs = one_sample(as_inputs(example_input), backbone)
    cache = GroupsCache(backbone, inputs)
    known = cache.get(checked=check)
    if known is not None:
        return known
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        keep_hooks = hooks_matter(backbone, inputs)
        clone = cpu_copy(backbone, torch.float32, keep_hooks)
        on_cpu = one_sample(inputs, clone)
        groups = cache.get(checked=False) or Tracer(clone, on_cpu).find()
        del clone
    cache.put(groups, checked=False)
    if check and len(groups):
        groups = exact_groups(backbone, groups, on_cpu, keep_hooks=keep_hooks)
    if not len(groups):
        raise ValueError(
            f"Expected a backbone with units that can be pruned, but {type(backbone).__name__} has none: "
            + ("; ".join(groups.skipped) or "no convolution, MLP or attention was found")
            + "."
        )
    if check:
        cache.put(groups, checked=True)
    return groups
