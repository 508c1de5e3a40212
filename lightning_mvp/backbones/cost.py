"""What a backbone costs: parameters and multiply-accumulates, counted on a model or computed from masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from lightning_mvp.backbones.attention import attention_modules, head_dim
from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.inputs import as_inputs, one_sample
from lightning_mvp.backbones.units import Groups


def count_parameters(module: nn.Module) -> int:
    """The number of parameters; a shared one counts once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, example_input: Tensor | Sequence[Any]) -> int:
    """Multiply-accumulates of one image's forward pass: matrix products and convolutions, without biases.

    Half the FLOPs that PyTorch's FlopCounterMode counts. Attention runs unfused, because the counter misses fused
    attention on the CPU.

    Args:
        module: any module; not changed.
        example_input: images ``(N, C, H, W)``, or a tuple of several inputs; only the first sample is used.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4)) == 4 * 4 * 8 * 3 * 9
        True
    """
    inputs = one_sample(as_inputs(example_input), module)
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False) is True]
    counter = FlopCounterMode(display=False)
    try:
        for part in fused:
            part.fused_attn = False  # type: ignore[assignment]
        # Gradients must be on, because FlopCounterMode follows the autograd graph of what modules hand to each other,
        # such as a class token.
        with evaluating(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(*inputs)
    finally:
        for part in fused:
            part.fused_attn = True  # type: ignore[assignment]
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class _Layer:
    tensor: str
    shape: tuple[int, ...]
    positions: int


class CostModel:
    r"""Parameters and MACs of the small backbone for any masks, without building it.

    MACs are :math:`\sum_{layers} positions \cdot |W_{kept}| + \sum_{attention} 2 N^2 d \cdot heads_{kept}`, plus those
    of all other operations of the dense backbone, which no mask changes.

    Args:
        backbone: the dense backbone; not changed.
        groups: its groups.
        example_input: images ``(N, C, H, W)``, or a tuple of several inputs; only the first sample is used.

    Example:
        >>> from lightning_mvp.backbones import Masks, find_groups
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> groups = find_groups(net, torch.zeros(1, 3, 2, 2), check=False).select(include=["0"])
        >>> cost = CostModel(net, groups, torch.zeros(1, 3, 2, 2))
        >>> half = Masks({"0": torch.arange(8) < 4})
        >>> cost.parameters(half), cost.macs(half)
        (36, 112)
    """

    def __init__(self, backbone: nn.Module, groups: Groups, example_input: Tensor | Sequence[Any]) -> None:
        # Counting needs only how many entries of each axis a unit owns.
        self._spans = {
            tensor: [(axis, name, index.shape[1]) for axis, name, index in parts]
            for tensor, parts in groups.layout.items()
        }
        self._shapes = {name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
        self._heads: list[tuple[str, int, int]] = []  # group, its heads, MACs of one head
        self._layers: list[_Layer] = []
        with evaluating(backbone), ExitStack() as hooks:
            for name, module in backbone.named_modules():
                if isinstance(module, (_ConvNd, nn.Linear)):
                    hooks.enter_context(module.register_forward_hook(partial(self._note_layer, name)))
            for name, module in attention_modules(backbone)[0].items():
                hooks.enter_context(module.register_forward_hook(partial(self._note_attention, name)))
            backbone(*one_sample(as_inputs(example_input), backbone))
        full = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
        self._other = 0
        self._other = count_macs(backbone, example_input) - self.macs(full)

    def _note_layer(self, name: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(module.weight.shape)
        # A transposed convolution places its kernel at each input, any other at each output.
        positions = (inputs[0] if getattr(module, "transposed", False) else output).numel() // shape[0]
        self._layers.append(_Layer(f"{name}.weight".lstrip("."), shape, positions))

    def _note_attention(self, name: str, module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        windows, tokens = inputs[0].shape[:2]  # one image may come as several windows
        macs = 2 * windows * tokens**2 * head_dim(module)
        self._heads.append((f"{name}.heads".lstrip("."), module.num_heads, macs))

    def _numel(self, tensor: str, shape: tuple[int, ...], removed: Mapping[str, int]) -> int:
        sizes = list(shape)
        for axis, group, span in self._spans.get(tensor, ()):
            sizes[axis] -= span * removed.get(group, 0)
        return int(torch.Size(sizes).numel())

    def parameters(self, masks: Mapping[str, Any]) -> int:
        """Parameters of the small backbone."""
        removed = _removed(masks)
        return sum(self._numel(tensor, shape, removed) for tensor, shape in self._shapes.items())

    def macs(self, masks: Mapping[str, Any]) -> int:
        """Multiply-accumulates of the small backbone for one image."""
        removed = _removed(masks)
        linear = sum(layer.positions * self._numel(layer.tensor, layer.shape, removed) for layer in self._layers)
        attention = sum((heads - removed.get(group, 0)) * each for group, heads, each in self._heads)
        return linear + attention + self._other


def _removed(masks: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(mask) - int(mask.sum()) for name, mask in masks.items()}
