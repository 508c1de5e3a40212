"""Which precision is fast here."""

from __future__ import annotations

import torch
from torch import nn

from lightning_mvp.backbones.layout import gains_from_bf16


def resolve_precision(precision: str, accelerator: str = "cpu", network: nn.Module | None = None) -> str:
    """What ``"auto"`` means: ``"bf16-mixed"`` where it is faster, else ``"32-true"``.

    It is faster where the hardware multiplies bfloat16 natively; elsewhere it is emulated. On a CPU the network must
    also be an ordinary ConvNet (:func:`~lightning_mvp.backbones.layout.gains_from_bf16`): vision transformers and
    depthwise convolutions take as long or up to 3 times as long (`benchmarks/run.py steps`).

    In torch 2.15 on the CPU the bf16 weight gradient of a 3×3 stride-2 convolution on a 1×1 image is garbage (seen with
    timm's resnet18 on 16-pixel images): choose ``"32-true"`` where a run of such small images ends in NaN.

    Args:
        precision: ``"auto"``, or anything else, which is returned as it is.
        accelerator: as the Trainer's.
        network: what will be trained; None: an ordinary ConvNet.

    Example:
        >>> resolve_precision("32-true")
        '32-true'
        >>> resolve_precision("auto", network=nn.Linear(2, 2))
        '32-true'
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported()
    else:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, bool)() for check in checks)
        native = native and (network is None or gains_from_bf16(network))
    return "bf16-mixed" if native else "32-true"
