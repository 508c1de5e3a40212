"""Copies of a backbone on the CPU that compute what it computes, and may be traced and changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.utils.checkpoint import CheckpointFunction

from lightning_mvp.backbones.features import evaluating

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # where torch keeps them


class _Local(nn.SyncBatchNorm):
    """A synchronised batch norm that uses this process's batch alone; torch's refuses to train on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return _BatchNorm.forward(self, input)


def detached_copy(backbone: nn.Module) -> nn.Module:
    """A deep copy, also where a module keeps a computed tensor, such as a hook's weight, which deepcopy refuses."""
    held = [tensor for module in backbone.modules() for tensor in _held(vars(module))]
    return copy.deepcopy(backbone, {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf})


def _held(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part)


def cpu_copy(backbone: nn.Module, dtype: torch.dtype, keep_hooks: bool = False) -> nn.Module:
    """A copy on the CPU in eval mode, with every parameter trainable.

    Args:
        backbone: any module; not changed.
        dtype: of the copy's floating-point tensors.
        keep_hooks: keep the hooks that people have registered; they fire whenever the copy runs.
    """
    clone = detached_copy(backbone)
    for module in clone.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):  # else it would set the masked weight anew in each pass
                prune.remove(module, hook._tensor_name)
        if isinstance(module, nn.SyncBatchNorm):
            kind = type(module)
            bases = (_Local,) if kind is nn.SyncBatchNorm else (kind, _Local)
            module.__class__ = type(kind.__name__, bases, {})
    clone = clone.cpu().to(dtype).eval().requires_grad_(True)
    for module in clone.modules():  # a weight that a hook computes is no parameter: `to` has not cast it
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.detach().to("cpu", dtype))
    if not keep_hooks:
        for module in clone.modules():
            for kind_of_hook in HOOKS:
                getattr(module, kind_of_hook).clear()
    return clone


def hooked_modules(backbone: nn.Module) -> list[str]:
    """Names of the modules with forward hooks that may change what the backbone computes.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1))
        >>> handle = net[0].register_forward_hook(lambda module, inputs, output: output + 1)
        >>> hooked_modules(net)
        ['0']
    """
    return [
        name
        for name, module in backbone.named_modules()
        if module._forward_hooks
        or any(not isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())
    ]


def hooks_matter(backbone: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether a copy must keep the backbone's hooks: the copy and the backbone are compared on random images.

    Args:
        backbone: on any device; it runs once, in eval mode, if it has hooks.
        inputs: of one forward pass, one sample.

    Raises:
        ValueError: the backbone's hooks can't be copied: they hold on to the backbone itself.
    """
    hooked = hooked_modules(backbone)
    if not hooked:
        return False
    clones = {keep: cpu_copy(backbone, torch.float32, keep_hooks=keep) for keep in (False, True)}
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(i.shape, generator=generator) if i.is_floating_point() else i.cpu() for i in inputs]
    given = [t.to(i.device, i.dtype) for t, i in zip(images, inputs, strict=True)]
    with evaluating(backbone):
        expected = [tensor.float().cpu() for tensor in tensors_in(backbone(*given))]
    for keep, clone in clones.items():
        try:
            with evaluating(clone):
                got = tensors_in(clone(*images))
        except Exception:  # a forward pass may raise anything where its hooks are missing
            continue
        if len(got) == len(expected) and all(map(_alike, got, expected)):
            return keep
    raise ValueError(
        f"Expected a backbone that a copy can stand for, but a copy computes something else: forward hooks on "
        f"{', '.join(f'`{name}`' for name in hooked[:5])} carry values around the forward pass. Let `forward` hand "
        "them on itself, or remove the hooks (`handle.remove()`) before pruning."
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    # The backbone may compute in half precision, which is exact to about three digits, and its copy in float32.
    return one.shape == other.shape and bool((one.float() - other).abs().max() <= 0.02 * other.abs().max() + 1e-6)


def tensors_in(output: Any) -> list[Tensor]:
    """The floating-point tensors that a backbone returns: alone, or in tuples, lists, dicts and dataclasses of them.

    Raises:
        ValueError: there is none.

    Example:
        >>> [tuple(tensor.shape) for tensor in tensors_in({"a": torch.zeros(1), "b": [torch.zeros(2), None]})]
        [(1,), (2,)]
    """
    found = _flattened(output)
    if not found:
        raise ValueError(
            f"Expected the backbone to return a tensor, or a tuple, list or dict of tensors, but got "
            f"{type(output).__name__}. Let its `forward` return its features."
        )
    return found


def _flattened(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif hasattr(output, "__dataclass_fields__"):
        output = [getattr(output, name) for name in output.__dataclass_fields__]
    return [tensor for part in output for tensor in _flattened(part)] if isinstance(output, (list, tuple)) else []


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Reentrant activation checkpointing, which hides layers from autograd's graph, is off meanwhile."""
    apply = CheckpointFunction.apply
    CheckpointFunction.apply = lambda function, _preserve, *arguments: function(*arguments)  # type: ignore[assignment]
    try:
        yield
    finally:
        CheckpointFunction.apply = apply  # type: ignore[method-assign]
