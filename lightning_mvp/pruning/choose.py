"""Masks from scores and a target ratio: which units are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from lightning_mvp.backbones.masks import Masks, round_up, widths
from lightning_mvp.pruning.importance import normalised
from lightning_mvp.words import counted

Scope = Literal["layer", "global"]
RatioOf = Literal["units", "params", "macs"]


class Cost(Protocol):
    """What masks cost: parameters and multiply-accumulates of the small backbone."""

    def parameters(self, masks: Masks) -> int: ...

    def macs(self, masks: Masks) -> int: ...


def require_choice(name: str, value: str, allowed: object) -> None:
    """Refuse a value that is not one of a Literal's.

    Example:
        >>> require_choice("scope", "local", Scope)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `scope` to be one of 'layer', 'global', but got 'local'.
    """
    choices = get_args(allowed)
    if value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def top_units(scores: Mapping[str, Tensor], kept: Mapping[str, int], current: Masks | None = None) -> Masks:
    """Keep the best-scored units of each group; equal scores go to the lower index.

    Args:
        scores: ``(units,)`` for each group.
        kept: how many units each group keeps.
        current: the units that are left, from which to choose; None for all.

    Returns:
        Masks that keep ``kept`` units of each group, or all that are left if these are fewer.

    Example:
        >>> top_units({"a": torch.tensor([3.0, 1.0, 2.0])}, {"a": 2})["a"]
        tensor([ True, False,  True])
    """
    masks = {}
    for name, score in scores.items():
        score = score.double()
        alive = len(score)
        if current is not None:
            score = torch.where(current[name], score, -torch.inf)
            alive = int(current[name].sum())
        order = torch.sort(score, descending=True, stable=True).indices
        mask = torch.zeros(len(score), dtype=torch.bool)
        mask[order[: min(kept[name], alive)]] = True
        masks[name] = mask
    return Masks(masks)


def _global_order(scores: Mapping[str, Tensor], current: Masks, floor: int) -> list[tuple[str, int]]:
    """The units that are left, the least important first, without the ``floor`` best of each group."""
    order = []
    for name, score in normalised(scores, current).items():
        alive = torch.where(current[name])[0]
        by_score = alive[torch.sort(score[alive], stable=True, descending=True).indices].tolist()
        order += [(float(score[unit]), name, -unit) for unit in by_score[floor:]]
    return [(name, -last_first) for _, name, last_first in sorted(order)]


def choose_masks(
    scores: Mapping[str, Tensor],
    current: Masks,
    kept_fraction: float,
    *,
    scope: Scope = "layer",
    ratio_of: RatioOf = "units",
    cost: Cost | None = None,
    floor: int = 1,
    multiples: Mapping[str, int] | None = None,
) -> Masks:
    """One pruning decision: the units that stay, by score.

    With scope ``layer`` every group keeps the same fraction of its units, rounded by
    :func:`~lightning_mvp.backbones.masks.widths`. With scope ``global`` one ranking of all scores, normalised by each
    group's mean, decides. With ``ratio_of`` params or macs that fraction, or the number of units removed, is found by
    bisection, so that the small backbone's cost comes as near to the target as whole units allow without exceeding it.

    Args:
        scores: ``(units,)`` for each group, on the CPU.
        current: the units that are left.
        kept_fraction: the fraction of the dense backbone's units, parameters or MACs to keep, in (0, 1].
        scope: ``"layer"`` or ``"global"``.
        ratio_of: what ``kept_fraction`` is a fraction of.
        cost: needed unless ``ratio_of`` is units.
        floor: the least number of units a group keeps.
        multiples: from :func:`~lightning_mvp.backbones.masks.unit_multiples`, to which the numbers of units are rounded
            up. Default: they are not. A ratio of parameters or MACs, or of units with scope ``global``, is reached all
            the same; a ratio of units with scope ``layer`` becomes smaller.

    Returns:
        Masks that are subsets of ``current``.

    Raises:
        ValueError: an unknown scope or ratio_of, no cost where it is needed, or a target out of reach: even ``floor``
            units a group (rounded up to ``multiples``) cost more.
    """
    require_choice("scope", scope, Scope)
    require_choice("ratio_of", ratio_of, RatioOf)
    sizes = current.sizes

    if scope == "layer" and ratio_of == "units":
        return top_units(scores, widths(sizes, kept_fraction, floor, multiples), current)

    def amount(masks: Masks) -> int:
        if ratio_of == "units":
            return sum(masks.kept.values())
        if cost is None:
            raise ValueError(f"Expected argument `cost` to be given for ratio_of={ratio_of!r}, but got None.")
        return cost.parameters(masks) if ratio_of == "params" else cost.macs(masks)

    if scope == "layer":
        # Fractions at which some width changes: at (k - 1/2) / |U| a group has k units, below it k - 1.
        steps = {(k - 0.5) / size for size in sizes.values() for k in range(1, size + 1)}
        fractions = sorted({1.0, *steps}, reverse=True)
        last = len(fractions) - 1

        def candidate(level: int) -> Masks:
            return top_units(scores, widths(sizes, fractions[level], floor, multiples), current)
    else:
        order = _global_order(scores, current, floor)
        last = len(order)

        def candidate(level: int) -> Masks:
            masks = {name: mask.clone() for name, mask in current.items()}
            for name, unit in order[:level]:
                masks[name][unit] = False
            kept = {name: int(mask.sum()) for name, mask in masks.items()}
            return top_units(scores, round_up(kept, sizes, multiples), current) if multiples else Masks(masks)

    dense = amount(Masks.full(sizes))
    target = kept_fraction * dense
    if ratio_of == "units":
        target = int(target + 0.5)
    low, high = 0, last
    while low < high:  # find the first level within the target; a higher level never costs more
        middle = (low + high) // 2
        low, high = (low, middle) if amount(candidate(middle)) <= target else (middle + 1, high)
    chosen = candidate(low)
    if amount(chosen) > target:
        raise ValueError(
            f"Keeping {kept_fraction:.1%} of the {ratio_of} is out of reach: with {counted(floor, 'unit')} left in "
            f"every group {'(rounded up) ' if multiples else ''}{amount(chosen) / dense:.1%} remain. Choose a smaller "
            f"`pruning_ratio`{' or `round_to`' if multiples else ''}."
        )
    return chosen
