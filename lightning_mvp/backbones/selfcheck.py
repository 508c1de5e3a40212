"""The self-check: a zeroed and a physically cut backbone must compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_mvp.backbones.copies import cpu_copy, tensors_in, without_checkpointing
from lightning_mvp.backbones.inputs import as_inputs, first_line
from lightning_mvp.backbones.masks import Masks, apply_masks, random_masks
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.units import Groups
from lightning_mvp.errors import SelfCheckError

TOLERANCE = 1e-9  # the largest difference that rounding in float64 explains, as a share of the largest output
SMALL = 64  # pixels on a side below which the last maps of a network may have one pixel


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
        if isinstance(getattr(part, "drop_rate", None), float):  # read by models that call F.dropout themselves
            part.drop_rate = 0.0  # type: ignore[assignment]
        if isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):  # they keep a rate instead of a Dropout module
            part.dropout = 0.0
        if "drop" in type(part).__name__.lower():
            part.eval()
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # fused attention reads it, whatever the mode
    return module


def unsymmetrical_masks(groups: Groups, pruning_ratio: float, seed: int) -> Masks:
    """Random masks that differ from their own mirror images where their group's size allows.

    A mask that reads the same backwards would hide an index map that is flipped.

    Args:
        groups: of any backbone.
        pruning_ratio: the fraction removed in each group.
        seed: of the random numbers.
    """
    masks = dict(random_masks(groups, pruning_ratio, seed))
    for name, mask in masks.items():
        for shift in range(len(mask)):
            turned = mask.roll(shift)
            if not torch.equal(turned, turned.flip(0)):
                masks[name] = turned
                break
    return Masks(masks)


@dataclass(frozen=True)
class Finding:
    """What zeroing and cutting differ by.

    Args:
        difference: the largest difference, relative to the largest output; infinite where a model fails.
        why: the end of a sentence about the cause; may be empty.
    """

    difference: float
    why: str = ""

    @property
    def exact(self) -> bool:
        return self.difference <= TOLERANCE


class SelfCheck:
    """Compares zeroed and cut copies of one backbone, in float64, with every parameter and statistic random.

    Args:
        backbone: the dense backbone; not changed.
        example_input: as in :func:`~lightning_mvp.backbones.groups.find_groups`.
        keep_hooks: let the copies keep the backbone's hooks.

    Attributes:
        notes: what could not be compared, and why.
    """

    def __init__(self, backbone: nn.Module, example_input: Tensor | Sequence[Any], *, keep_hooks: bool = False) -> None:
        self.clone = cpu_copy(backbone, torch.float64, keep_hooks)
        randomise(self.clone)
        self.notes: list[str] = []
        self._trains = True
        generator = torch.Generator().manual_seed(1)
        # In train mode batch norm divides by the standard deviation of its batch. Where the last maps have one pixel,
        # two samples may differ so little that the division makes rounding errors large.
        examples = as_inputs(example_input)
        small = all(example.shape[-1] < SMALL for example in examples if example.ndim == 4)
        samples = 8 if small else 2
        self.images = tuple(
            torch.randn(samples, *example.shape[1:], generator=generator, dtype=torch.float64)
            if example.is_floating_point()
            else example[:1].expand(samples, *example.shape[1:])
            for example in (tensor.cpu() for tensor in examples)
        )

    def _outputs(self, module: nn.Module, seed: int = 0) -> list[Tensor]:
        """What a module returns, with the same random numbers for every module that draws the same shapes."""
        torch.manual_seed(seed)
        with torch.no_grad():
            return tensors_in(module(*self.images))

    def _copy(self, groups: Groups, masks: Mapping[str, Any], training: bool) -> nn.Module:
        return _without_dropout(shrink(self.clone, groups, masks).train(training))

    def compare(self, groups: Groups, masks: Mapping[str, Any], training: bool) -> Finding:
        """The difference in one mode. It is 0 in train mode where even the dense backbone differs from pass to pass."""
        if training and not self._trains:
            return Finding(0.0)
        try:
            finding = self._compare(groups, masks, training)
        except Exception as error:  # whatever a forward pass raises where shapes don't fit
            finding = Finding(float("inf"), f" ({first_line(error)})")
        if training and not finding.exact and not self._can_train(groups):
            self._trains = False
            return Finding(0.0)
        return finding

    def _compare(self, groups: Groups, masks: Mapping[str, Any], training: bool) -> Finding:
        small = self._copy(groups, masks, training)
        zeroed = self._copy(groups, Masks.full(groups), training)
        apply_masks(zeroed, groups, masks)
        expected, got = self._outputs(zeroed), self._outputs(small)
        if len(expected) != len(got):
            return Finding(float("inf"), f" ({len(expected)} outputs become {len(got)})")
        worst = (
            max(map(_difference, expected, got))
            if not groups.feature_groups
            else _features(expected[0], got[0], groups, masks)
        )
        if worst <= TOLERANCE and not training and not self._has_finite_gradients(zeroed, groups):
            return Finding(
                float("inf"),
                " in the backward pass: an operation such as a square root has no finite derivative where removed "
                "units are zero",
            )
        return Finding(worst if worst == worst else float("inf"))  # NaN is infinite, too

    def _has_finite_gradients(self, zeroed: nn.Module, groups: Groups) -> bool:
        """Whether gradients of one sample are finite with the units zeroed, or not even finite without that."""

        def finite(module: nn.Module) -> bool:
            images = [image[:1] for image in self.images]
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            with torch.enable_grad(), without_checkpointing():
                total = torch.stack([output.sum() for output in tensors_in(module(*images))]).sum()
                gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)

        return finite(zeroed) or not finite(self._copy(groups, Masks.full(groups), training=False))

    def _can_train(self, groups: Groups) -> bool:
        """Whether the dense copy computes the same twice in train mode; if not, that is noted."""
        dense = self._copy(groups, Masks.full(groups), training=True)
        try:
            one, two = self._outputs(dense, seed=0), self._outputs(dense, seed=1)
        except Exception as error:  # of any kind, such as a detector's that wants targets
            self.notes.append(f"train mode: not compared, the backbone fails in it ({first_line(error)})")
            return False
        if max(map(_difference, one, two)) <= TOLERANCE:
            return True
        self.notes.append("train mode: not compared, the backbone draws random numbers in it (dropout or noise)")
        return False

    def worst(self, groups: Groups, masks: Mapping[bool, Mapping[str, Any]]) -> Finding:
        """The larger difference of eval and train mode, each with masks of its own."""
        finding = self.compare(groups, masks[False], training=False)
        return self.compare(groups, masks[True], training=True) if finding.exact else finding


def _difference(expected: Tensor, got: Tensor) -> float:
    """The largest difference relative to the largest output; infinite where an output is not a number."""
    if expected.shape != got.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-300))
    return difference if difference == difference else float("inf")


def _features(expected: Tensor, got: Tensor, groups: Groups, masks: Mapping[str, Any]) -> float:
    """The largest difference of features on axis 1 that are left; the removed ones must be zero."""
    axis = 1 if expected.ndim > 1 else 0
    kept = torch.from_numpy(groups.kept_features(masks, expected.shape[axis]))
    gone = torch.ones(expected.shape[axis], dtype=torch.bool).index_fill(0, kept, False)
    left = expected.index_select(axis, kept)
    if left.shape != got.shape:
        return float("inf")
    leaked = expected[:, gone].abs().max() if gone.any() else torch.zeros(())
    return float(torch.maximum((left - got).abs().max(), leaked) / expected.abs().max().clamp_min(1e-300))


def exact_groups(
    backbone: nn.Module, groups: Groups, example_input: Tensor | Sequence[Any], *, keep_hooks: bool = False
) -> Groups:
    """The groups whose zeroed and cut versions agree, all at once; each other one becomes a note.

    Half of the units are removed in eval mode, four fifths in train mode, by masks that no flip maps to themselves.

    Args:
        backbone: the dense backbone; not changed.
        groups: its groups.
        example_input: as in :func:`~lightning_mvp.backbones.groups.find_groups`.
        keep_hooks: let the copies keep the backbone's hooks.

    Returns:
        Those that are exact, in the same order, which may be none.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        check = SelfCheck(backbone, example_input, keep_hooks=keep_hooks)
        masks = {
            training: unsymmetrical_masks(groups, ratio, seed=0) for training, ratio in ((False, 0.5), (True, 0.8))
        }

        def finding(names: Sequence[str]) -> Finding:
            part = Groups([groups[name] for name in names])
            return check.worst(part, {mode: {name: masks[mode][name] for name in names} for mode in masks})

        def inexact(names: list[str]) -> dict[str, Finding]:
            """Those of the groups that make zeroed and cut copies differ, found by halving."""
            found = finding(names)
            if found.exact:
                return {}
            if len(names) == 1:
                return {names[0]: found}
            first, second = names[: len(names) // 2], names[len(names) // 2 :]
            blamed = inexact(first) | inexact(second)
            if blamed:
                return blamed
            for name in second:  # each half is exact, but not both together
                found = finding([*first, name])
                if found.exact:
                    first.append(name)
                else:
                    blamed[name] = found
            return blamed

        names, notes = groups.names, []
        if finding(names).exact:
            return Groups(groups, [*groups.skipped, *check.notes])
        for alike in _attention_alike(backbone, groups):
            # A forward pass that does not read its number of heads from the module fails in every block: the first and
            # the last block stand for all.
            found = [finding([name]) for name in (alike[0], alike[-1])]
            if not any(each.exact for each in found):
                notes += [_note(name, found[0]) for name in alike]
                names = [name for name in names if name not in alike]
        while names and (blamed := inexact(names)):
            notes += [_note(name, found) for name, found in blamed.items()]
            names = [name for name in names if name not in blamed]
        return Groups([groups[name] for name in names], [*groups.skipped, *notes, *check.notes])


def _attention_alike(backbone: nn.Module, groups: Groups) -> list[list[str]]:
    """Groups of heads whose attention is of one class, where there are several."""
    alike: dict[type, list[str]] = {}
    for group in groups:
        if group.kind == "heads":
            owner = backbone.get_submodule(group.name.removesuffix("heads").removesuffix("."))
            alike.setdefault(type(owner), []).append(group.name)
    return [names for names in alike.values() if len(names) > 2]


def _note(name: str, found: Finding) -> str:
    if found.difference == float("inf"):
        return f"{name}: left out, the zeroed or the cut backbone fails{found.why}"
    return (
        f"{name}: left out, zeroed and cut backbone differ by {found.difference:.1e} of the largest output: something "
        "after its units turns zero into another value, or mixes them"
    )


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
        check = SelfCheck(backbone, example_input)

        def finding(masks: Mapping[str, Any]) -> Finding:
            both = [check.compare(groups, masks, training) for training in (False, True)]
            return max(both, key=lambda found: found.difference)

        worst = finding(masks)
        if worst.exact:
            return worst.difference
        for group in groups:  # which one is it? mask each alone
            found = finding(Masks({**Masks.full(groups), group.name: masks[group.name]}))
            if not found.exact:
                raise SelfCheckError(
                    f"Self-check failed in group `{group.name}` ({group.kind}, {group.size} units): zeroed and cut "
                    f"backbone differ by {found.difference:.1e} of the largest output{found.why}. It can't be pruned "
                    f"exactly; leave the group out: `groups.select(exclude=[{group.name!r}])`."
                )
        raise SelfCheckError(
            f"Self-check failed: zeroed and cut backbone differ by {worst.difference:.1e} of the largest output"
            f"{worst.why}, though each group alone is exact. This architecture can't be pruned exactly."
        )
