"""Masks say which units are kept; applying them sets what the others own to zero, in place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lightning_mvp.backbones.units import Groups, Role
from lightning_mvp.checks import require_whole
from lightning_mvp.files import write_whole
from lightning_mvp.fingerprint import fingerprint

FORMAT = "lightning-mvp masks 1"


class Masks(Mapping[str, Tensor]):
    """The units that are kept, group by group: an ordered, read-only mapping of bool tensors on the CPU.

    Args:
        masks: group → ``(units,)`` bool tensor or array; copied.

    Raises:
        ValueError: a mask is not one-dimensional, not bool, or keeps nothing.

    Example:
        >>> masks = Masks({"conv": torch.tensor([True, False, True, False])})
        >>> masks.kept, masks.pruning_ratio, masks.iou(Masks.full({"conv": 4}))
        ({'conv': 2}, 0.5, {'conv': 0.5})
    """

    def __init__(self, masks: Mapping[str, Any]) -> None:
        self._masks: dict[str, Tensor] = {}
        for name, value in masks.items():
            mask = torch.as_tensor(value).detach().cpu().clone()
            if mask.dtype != torch.bool or mask.ndim != 1:
                raise ValueError(
                    f"Expected the mask of group {name!r} to be a bool tensor of shape (units,), but got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}."
                )
            if not mask.any():
                raise ValueError(f"Expected at least one kept unit in group {name!r}, but its mask keeps none.")
            self._masks[name] = mask

    @classmethod
    def full(cls, groups: Groups | Mapping[str, int]) -> Masks:
        """Masks that keep every unit of the groups (or of the group sizes)."""
        sizes = groups.sizes if isinstance(groups, Groups) else groups
        return cls({name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return list(self) == list(other) and all(torch.equal(mask, other[name]) for name, mask in self.items())

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        kept = ", ".join(f"{name}: {self.kept[name]}/{len(mask)}" for name, mask in self.items())
        return f"Masks({kept})"

    @property
    def kept(self) -> dict[str, int]:
        """Number of units kept in each group."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of each group, kept or not."""
        return {name: len(mask) for name, mask in self.items()}

    @property
    def pruning_ratio(self) -> float:
        """The fraction of all units that is removed."""
        total = sum(self.sizes.values())
        return 1 - sum(self.kept.values()) / total if total else 0.0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and masks, the same whatever their order."""
        return fingerprint(self._masks)

    def iou(self, other: Masks) -> dict[str, float]:
        r"""Overlap with other masks in each group, :math:`|\Omega^i \cap \Omega^j| / |\Omega^i \cup \Omega^j|`.

        Raises:
            ValueError: the groups or their sizes differ.
        """
        if self.sizes != other.sizes:
            raise ValueError(f"Expected masks of the same groups, but got {self.sizes} and {other.sizes}.")
        return {name: int((mask & other[name]).sum()) / int((mask | other[name]).sum()) for name, mask in self.items()}

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the masks to a safetensors file.

        Raises:
            FileExistsError: there is a file already, and ``overwrite`` is off.
        """
        payload = save(self._masks, {"format": FORMAT, "groups": json.dumps(list(self))})
        write_whole(path, payload, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read masks written by :meth:`save`, groups in the same order.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no masks, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"No masks at {path}. Write them with `Masks.save` or `MaskExport`.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"Expected {path} to hold {FORMAT!r}, but it says {metadata.get('format')!r}.")
                return cls({name: file.get_tensor(name) for name in json.loads(metadata["groups"])})
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def require_masks_fit(groups: Groups, masks: Mapping[str, Any]) -> None:
    """Refuse masks that are not exactly those of the groups.

    Raises:
        ValueError: a group is missing, unknown, or of another size.
    """
    got = {name: len(mask) for name, mask in masks.items()}
    if got != groups.sizes:
        wrong = [name for name in {**groups.sizes, **got} if got.get(name) != groups.sizes.get(name)]
        raise ValueError(
            f"Expected masks of the backbone's groups, but {len(wrong)} differ; first {wrong[0]!r}: expected "
            f"{groups.sizes.get(wrong[0], 'no such group')} units, got {got.get(wrong[0], 'no mask')}. "
            "Masks belong to the backbone they were made on."
        )


Dead = dict[str, list[tuple[int, Tensor]]]


def dead_entries(
    groups: Groups,
    masks: Mapping[str, Any],
    device: torch.device | str = "cpu",
    roles: tuple[Role, ...] = ("producer", "norm"),
) -> Dead:
    """The entries that removed units own, by default those of producers and norms, which zeroing a unit sets to zero.

    Args:
        groups: the backbone's groups.
        masks: one for each group.
        device: on which the indices will be.
        roles: the roles of the members that count.

    Returns:
        parameter name → list of (axis, int64 indices of its dead entries); parameters without any are left out.
    """
    require_masks_fit(groups, masks)
    dead: Dead = {}
    for group in groups:
        removed = ~torch.as_tensor(masks[group.name]).cpu().numpy()
        if removed.any():
            for member in group.members:
                if member.role in roles:
                    entries = torch.from_numpy(member.index[removed].reshape(-1)).to(device, non_blocking=True)
                    dead.setdefault(member.tensor, []).append((member.axis, entries))
    return dead


@torch.no_grad()
def zero_entries(tensors: Mapping[str, Tensor], dead: Dead) -> None:
    """Set dead entries to zero in place, without making the CPU wait for a GPU.

    Args:
        tensors: parameters, their gradients or optimizer state, by parameter name. Those not in ``dead`` stay as they
            are.
        dead: from :func:`dead_entries`, on the tensors' device. Names that are not in ``tensors`` are passed over.

    Example:
        >>> weight = torch.ones(3)
        >>> zero_entries({"bn.weight": weight}, {"bn.weight": [(0, torch.tensor([1]))]})
        >>> weight
        tensor([1., 0., 1.])
    """
    for name, parts in dead.items():
        if name in tensors:
            for axis, entries in parts:
                tensors[name].index_fill_(axis, entries, 0)


class Keeper:
    """Zeroes dead entries of the same tensors again and again, with two ``_foreach`` operations.

    A dead entry that is infinite or NaN is not zeroed, since 0 × inf is NaN. :func:`zero_entries` zeroes it, too, and
    takes longer.

    Args:
        parameters: by name; :meth:`zero` and :meth:`zero_gradients` change these tensors and their gradients.
        dead: from :func:`dead_entries`, on the parameters' device.

    Example:
        >>> weight = nn.Parameter(torch.ones(3))
        >>> Keeper({"bn.weight": weight}, {"bn.weight": [(0, torch.tensor([1]))]}).zero()
        >>> weight.tolist()
        [1.0, 0.0, 1.0]
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], dead: Dead) -> None:
        # Vectors and larger tensors go into calls of their own: `_foreach_mul_` fuses a call on the GPU only if every
        # tensor in it has the shape of its factor, and the factor of a larger tensor is broadcast.
        self._lists: list[tuple[list[Tensor], list[Tensor]]] = []
        for vectors in (True, False):
            names = [name for name in dead if (parameters[name].ndim == 1) == vectors]
            factors = [self._factor(parameters[name], dead[name]) for name in names]
            self._lists.append(([parameters[name] for name in names], factors))

    @staticmethod
    def _factor(parameter: Tensor, parts: list[tuple[int, Tensor]]) -> Tensor:
        """1 for entries that are kept and 0 for dead ones; axes that lose no entries have length 1, to broadcast."""
        factor = torch.ones([1] * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
        for axis, entries in parts:
            along = torch.ones(parameter.shape[axis], dtype=parameter.dtype, device=parameter.device)
            shape = [-1 if dim == axis else 1 for dim in range(parameter.ndim)]
            factor = factor * along.index_fill(0, entries, 0).view(shape)
        return factor

    @torch.no_grad()
    def zero(self) -> None:
        """Zero the parameters' dead entries."""
        for parameters, factors in self._lists:
            if parameters:
                torch._foreach_mul_(parameters, factors)

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Zero the dead entries of those parameters' gradients that are not None."""
        for parameters, factors in self._lists:
            pairs = zip(parameters, factors, strict=True)
            there = [(parameter.grad, factor) for parameter, factor in pairs if parameter.grad is not None]
            if there:
                torch._foreach_mul_([gradient for gradient, _ in there], [factor for _, factor in there])


def apply_masks(backbone: nn.Module, groups: Groups, masks: Mapping[str, Any]) -> None:
    """Zero the producer and norm entries of removed units in place, so that the backbone computes as without them.

    Buffers stay as they are: they don't matter once γ and β are zero. Where masks are applied after every step, use a
    :class:`Keeper`.

    Args:
        backbone: the dense backbone.
        groups: its groups.
        masks: one for each group.
    """
    parameters = dict(backbone.named_parameters())
    device = next(iter(parameters.values())).device
    zero_entries(parameters, dead_entries(groups, masks, device))


def unit_multiples(groups: Groups, round_to: int) -> dict[str, int]:
    """How many units of each group make a number of channels that is a multiple of ``round_to``.

    Hardware computes such widths fastest. For attention heads, which are not counted in channels, it is 1.

    Args:
        groups: the backbone's groups.
        round_to: a number of channels, at least 1.

    Raises:
        ValueError: ``round_to`` is no integer of at least 1.

    Example:
        >>> from lightning_mvp.backbones import find_groups
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 8, 1))
        >>> unit_multiples(find_groups(net, torch.zeros(1, 3, 4, 4)), 8)  # a unit of "0" is a conv group of 4 channels
        {'0': 2, '2': 8}
    """
    require_round_to(round_to)
    spans = {
        group.name: next(member.index.shape[1] for member in group.members if member.role == "producer")
        for group in groups
    }
    return {
        group.name: 1 if group.kind == "heads" else round_to // math.gcd(round_to, spans[group.name])
        for group in groups
    }


def require_round_to(round_to: int) -> None:
    """Refuse what is no number of channels to round to."""
    require_whole(
        round_to, "argument `round_to`", advice="8 makes every width a multiple of 8; 1 leaves them as they are."
    )


def round_up(
    counts: Mapping[str, int], sizes: Mapping[str, int], multiples: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Numbers of units, each raised to the next of its group's multiples, at most all of the group.

    Args:
        counts: group → number of units.
        sizes: group → units there are.
        multiples: from :func:`unit_multiples`; the number of a group without one stays as it is. Default: all do.

    Example:
        >>> round_up({"a": 3, "b": 9, "c": 3}, {"a": 32, "b": 12, "c": 6}, {"a": 8, "b": 8})
        {'a': 8, 'b': 12, 'c': 3}
    """
    multiples = multiples or {}
    steps = {name: multiples.get(name, 1) for name in counts}
    return {name: min(sizes[name], -(-count // steps[name]) * steps[name]) for name, count in counts.items()}


def widths(
    sizes: Mapping[str, int], kept_fraction: float, floor: int = 1, multiples: Mapping[str, int] | None = None
) -> dict[str, int]:
    r"""How many units each group keeps: :math:`\max(\mathrm{floor}, \lfloor f\,|U| + \tfrac12 \rfloor)`, at most |U|.

    Args:
        sizes: group → number of units.
        kept_fraction: f in (0, 1].
        floor: the least number of units.
        multiples: from :func:`unit_multiples`, to which widths are rounded up. Default: they are not.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> widths({"a": 10, "b": 3}, 0.25)
        {'a': 3, 'b': 1}
    """
    if not 0 < kept_fraction <= 1:
        raise ValueError(f"Expected argument `kept_fraction` to be a float in (0, 1], but got {kept_fraction!r}.")
    if floor < 1:
        raise ValueError(f"Expected argument `floor` to be at least 1, but got {floor!r}.")
    # 1 - 0.9 is a little below 0.1. Rounding to 9 digits first lets halves go up for all ratios alike.
    exact = {
        name: min(size, max(floor, math.floor(round(kept_fraction * size, 9) + 0.5))) for name, size in sizes.items()
    }
    return round_up(exact, sizes, multiples)


def random_masks(groups: Groups | Mapping[str, int], ratio: float, seed: int) -> Masks:
    """Masks that remove a random ``ratio`` of each group's units, the same ones for the same seed.

    Example:
        >>> random_masks({"a": 10}, 0.5, seed=0).kept
        {'a': 5}
    """
    sizes = groups.sizes if isinstance(groups, Groups) else groups
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, width in widths(sizes, 1 - ratio).items():
        masks[name] = torch.zeros(sizes[name], dtype=torch.bool)
        masks[name][torch.randperm(sizes[name], generator=generator)[:width]] = True
    return Masks(masks)
