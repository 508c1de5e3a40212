"""The memory layout to train a network in, and whether bfloat16 makes its training faster on a CPU."""

from __future__ import annotations

import torch
from torch import nn

# The number of channels that oneDNN's AVX2 kernels process at a time.
BLOCK = 8


def training_layout(network: nn.Module) -> torch.memory_format:
    """``channels_last``, several times faster on CPUs, except where oneDNN would then write past its buffers.

    The weight gradient of a strided 1×1 convolution with fewer than :data:`BLOCK` input channels in that layout ends in
    wrong numbers, a hang or a crash on CPUs without AVX-512 (oneDNN issue 6035; seen with torch 2.14.1). Narrow pruned
    ResNets have such layers.

    Args:
        network: as it will be trained.

    Example:
        >>> training_layout(nn.Conv2d(16, 32, 1, stride=2))
        torch.channels_last
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return torch.channels_last
    narrow = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < BLOCK
        for layer in network.modules()
    )
    return torch.contiguous_format if narrow else torch.channels_last


def gains_from_bf16(network: nn.Module) -> bool:
    """Whether a CPU that multiplies bfloat16 natively trains a network faster in it: if it is an ordinary ConvNet.

    An ordinary ConvNet has convolutions, none of them grouped, and no attention or layer norm. A training step of
    other networks took as long (`vit_tiny`) or up to 3 times as long in bfloat16, though their forward passes alone
    were faster (`benchmarks/run.py steps`).

    Args:
        network: as it will be trained.

    Example:
        >>> gains_from_bf16(nn.Conv2d(8, 8, 3)), gains_from_bf16(nn.Conv2d(8, 8, 3, groups=8))
        (True, False)
    """
    parts = list(network.modules())
    convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]
    others = any(isinstance(part, nn.LayerNorm | nn.MultiheadAttention) or hasattr(part, "num_heads") for part in parts)
    return bool(convolutions) and not others and all(layer.groups == 1 for layer in convolutions)
