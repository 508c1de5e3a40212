"""The self-check: a zeroed and a physically cut backbone must compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_mvp.backbones.groups import Groups, cpu_copy
from lightning_mvp.backbones.inputs import as_inputs
from lightning_mvp.backbones.masks import Masks, apply_masks
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.errors import SelfCheckError

TOLERANCE = 1e-9
SMALL = 64


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter and batch-norm statistic a random value that hides nothing.

    Scales (of norms, and layer scales) lie in 0.5–1.5, biases and means are not zero, variances lie in 0.5–1.5, other
    weights have a variance of 1 / fan-in. With real weights the check would be blind: a zero-initialised last norm or
    a small layer scale hides a wrong index map.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor) -> None:
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))

    def normal(tensor: Tensor, scale: float) -> None:
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.ndim < 2 and name != "bias":
                uniform(parameter)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
                normal(parameter, fan_in**-0.5)
        if isinstance(owner, _BatchNorm) and owner.running_mean is not None and owner.running_var is not None:
            normal(owner.running_mean, 0.5)
            uniform(owner.running_var)


def _without_dropout(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(getattr(part, "drop_rate", None), float):  # of models that call F.dropout themselves
            part.drop_rate = 0.0  # type: ignore[assignment]
        if "drop" in type(part).__name__.lower():
            part.eval()
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # fused attention reads it, whatever the mode
    return module


@torch.no_grad()
def _difference(
    clone: nn.Module, groups: Groups, masks: Mapping[str, Any], images: tuple[Tensor, ...], training: bool
) -> float:
    """Largest |zeroed − small| relative to the largest output. Both start from the clone, which is not changed."""
    small = _without_dropout(shrink(clone, groups, masks).train(training))
    zeroed = _without_dropout(shrink(clone, groups, Masks.full(groups)).train(training))
    apply_masks(zeroed, groups, masks)
    expected, got = zeroed(*images), small(*images)
    axis = 1 if expected.ndim > 1 else 0
    kept = torch.from_numpy(groups.kept_features(masks, expected.shape[axis]))
    difference = (expected.index_select(axis, kept) - got).abs().max() if len(kept) else torch.zeros(())
    gone = torch.ones(expected.shape[axis], dtype=torch.bool).index_fill(0, kept, False)
    leaked = expected[:, gone].abs().max() if gone.any() else torch.zeros(())
    result = float(torch.maximum(difference, leaked) / expected.abs().max().clamp_min(1e-300))
    return result if result == result else float("inf")


def _worst(clone: nn.Module, groups: Groups, masks: Mapping[str, Any], images: tuple[Tensor, ...]) -> tuple[float, str]:
    """The larger difference of eval and train mode, and the error where the small model does not even run."""
    try:
        return max(_difference(clone, groups, masks, images, training) for training in (False, True)), ""
    except (RuntimeError, IndexError, ValueError) as error:  # what torch raises for shapes that don't fit
        return float("inf"), f" ({str(error).splitlines()[0]})"


def check_exact(
    backbone: nn.Module, groups: Groups, masks: Mapping[str, Any], example_input: Tensor | Sequence[Any]
) -> float:
    r"""Prove that zeroing units and cutting them out are the same function, in eval and in train mode (no dropout).

    On a float64 CPU copy with every parameter and statistic random, :math:`\max |f_{zeroed}(x) - f_{small}(x)| /
    \max |f_{zeroed}(x)|` must be at most 1e-9, and removed features must be zero.

    Args:
        backbone: the dense backbone; not changed.
        groups: its groups.
        masks: one for each group.
        example_input: as in :func:`find_groups`; only the shape of floating-point inputs matters.

    Returns:
        The relative difference found.

    Raises:
        SelfCheckError: it is above 1e-9, or the small backbone does not run; the first wrong group is named.

    Example:
        >>> from lightning_mvp.backbones import find_groups, random_masks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, torch.zeros(1, 3, 8, 8), check=False)
        >>> check_exact(net, groups, random_masks(groups, 0.5, seed=0), torch.zeros(1, 3, 8, 8)) < 1e-9
        True
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        clone = cpu_copy(backbone, torch.float64)
        randomise(clone)
        generator = torch.Generator().manual_seed(1)
        # Batch norm in train mode divides by how far few values differ, which lifts rounding errors: where the last
        # maps of small images have one pixel, two samples are too few.
        small = all(example.shape[-1] < SMALL for example in as_inputs(example_input) if example.ndim == 4)
        samples = 8 if small else 2
        images = tuple(
            torch.randn(samples, *example.shape[1:], generator=generator, dtype=torch.float64)
            if example.is_floating_point()
            else example[:1].expand(samples, *example.shape[1:])
            for example in (tensor.cpu() for tensor in as_inputs(example_input))
        )
        worst, error = _worst(clone, groups, masks, images)
        if worst <= TOLERANCE:
            return worst
        for group in groups:  # which one is it? mask each alone
            alone = Masks({**Masks.full(groups), group.name: masks[group.name]})
            difference, reason = _worst(clone, groups, alone, images)
            if difference > TOLERANCE:
                raise SelfCheckError(
                    f"Self-check failed in group `{group.name}` ({group.kind}, {group.size} units): zeroed and cut "
                    f"backbone differ by {difference:.1e} of the largest output{reason}. It can't be pruned exactly; "
                    f"leave the group out: `find_groups(..., check=False).select(exclude=[{group.name!r}])`."
                )
        raise SelfCheckError(
            f"Self-check failed: zeroed and cut backbone differ by {worst:.1e} of the largest output{error}, though "
            "each group alone is exact. This architecture can't be pruned exactly."
        )
