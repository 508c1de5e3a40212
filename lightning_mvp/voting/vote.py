"""The vote: how much each neighbour counts, how many units each group keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from lightning_mvp.backbones.masks import Masks, round_up, widths
from lightning_mvp.fingerprint import to_array
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.schedule import require_ratio

Ballots = Literal["masks", "importance"]


def require_temperature(temperature: float | None) -> None:
    """Refuse a temperature that is neither None nor above 0."""
    if temperature is not None and not temperature > 0:
        raise ValueError(
            f"Expected argument `temperature` to be above 0 or None, but got {temperature!r}. None counts all "
            "neighbours alike."
        )


def coefficients(scores: Mapping[str, float], temperature: float | None = None) -> dict[str, float]:
    r"""How much each neighbour counts: :math:`a_j = 1`, or :math:`a_j = \mathrm{softmax}_j(s_j / T)`.

    Args:
        scores: similarity of each neighbour, greater is nearer.
        temperature: T; None gives every neighbour 1.

    Raises:
        ValueError: no scores, a score that is not finite, or a temperature that is not above 0.

    Example:
        >>> coefficients({"a": -1.0, "b": -1.0}, temperature=0.05)
        {'a': 0.5, 'b': 0.5}
    """
    if not scores or not all(math.isfinite(score) for score in scores.values()):
        raise ValueError(f"Expected argument `scores` to hold finite scores, but got {dict(scores)}.")
    require_temperature(temperature)
    if temperature is None:
        return dict.fromkeys(scores, 1.0)
    best = max(scores.values())
    powers = {name: math.exp((score - best) / temperature) for name, score in scores.items()}
    total = math.fsum(powers.values())
    return {name: power / total for name, power in powers.items()}


def vote_widths(
    masks: Mapping[str, Masks],
    pruning_ratio: float | None = None,
    multiples: Mapping[str, int] | None = None,
) -> dict[str, int]:
    r"""Units to keep per group: :math:`\max(1, \lfloor (1-r) |U_\ell| + 1/2 \rfloor)`, or their mean.

    Args:
        masks: entry name → its masks; at least one.
        pruning_ratio: r, the fraction removed, in (0, 1); None takes the neighbours' mean width, rounded half up.
        multiples: from :func:`~lightning_mvp.backbones.masks.unit_multiples`, to which widths are rounded up. Default:
            they are not.

    Example:
        >>> one, two = Masks({"conv": torch.tensor([1, 1, 0, 0]) > 0}), Masks({"conv": torch.tensor([1, 1, 1, 1]) > 0})
        >>> vote_widths({"x": one, "y": two}), vote_widths({"x": one, "y": two}, pruning_ratio=0.5)
        ({'conv': 3}, {'conv': 2})
    """
    sizes = _sizes(masks)
    if pruning_ratio is not None:
        return widths(sizes, 1 - require_ratio(pruning_ratio), multiples=multiples)
    total = {group: sum(each.kept[group] for each in masks.values()) for group in sizes}
    # In integers: floor(total / n + 1/2) without a rounding error at the half.
    means = {group: max(1, (2 * total[group] + len(masks)) // (2 * len(masks))) for group in sizes}
    return round_up(means, sizes, multiples)


def vote(
    masks: Mapping[str, Masks],
    widths: Mapping[str, int],
    coefficients: Mapping[str, float] | None = None,
    importance: Mapping[str, Mapping[str, Any]] | None = None,
    magnitude: Mapping[str, Any] | None = None,
    ballots: Ballots = "masks",
) -> Masks:
    r"""Keep the units with most votes: :math:`v_\ell(k) = \sum_{j \in N_t} a_j \, 1[k \in \Omega_\ell^j]`.

    After Zhao, Zhou, Long, Jiang, Zhang, ECML PKDD 2023, arXiv 2301.11560; the weights a_j and the fill order are ours.
    Equal votes go to the greater mean importance, then to the greater magnitude in θ⁰, then to the lower index. Sums
    are float64 over entries sorted by name, so the order of `masks` never matters.

    Args:
        masks: entry name → its masks Ω; at least one, all of the same groups.
        widths: group → units to keep.
        coefficients: entry name → a_j; None counts all alike.
        importance: entry name → group → ``(units,)``; only entries that have scores count in the mean.
        magnitude: group → ``(units,)``, of the dense θ⁰.
        ballots: with ``"masks"`` each neighbour has one vote for each unit that it kept. With ``"importance"`` (ours)
            its vote is the unit's stored importance, :math:`v_\ell(k) = \sum_j a_j \, I_k^j \, 1[k \in \Omega_\ell^j]`.

    Returns:
        Masks with exactly `widths` units kept.

    Raises:
        ValueError: no neighbours, masks of differing groups, or a width outside 1 … units.

    Example:
        >>> masks = {"x": Masks({"conv": torch.tensor([True, True, False])}),
        ...          "y": Masks({"conv": torch.tensor([False, True, True])})}
        >>> vote(masks, {"conv": 2}, coefficients={"x": 0.4, "y": 0.6})["conv"].tolist()
        [False, True, True]
    """
    require_choice("ballots", ballots, Ballots)
    sizes = _sizes(masks)
    names = sorted(masks)
    scored = [name for name in names if importance and importance.get(name)]
    chosen = {}
    for group, size in sizes.items():
        if not 1 <= widths.get(group, 0) <= size:
            raise ValueError(f"Expected a width of 1 to {size} for group {group!r}, but got {widths.get(group)}.")
        votes, scores = np.zeros(size), np.zeros(size)
        for name in names:
            ballot = to_array(masks[name][group]).astype(np.float64)
            if ballots == "importance" and name in scored:
                ballot *= to_array(importance[name][group]).astype(np.float64)  # type: ignore[index]
            votes += (1.0 if coefficients is None else coefficients[name]) * ballot
        for name in scored:
            scores += to_array(importance[name][group]).astype(np.float64) / len(scored)  # type: ignore[index]
        norms = np.zeros(size) if magnitude is None else to_array(magnitude[group]).astype(np.float64)
        # lexsort sorts by its last key first.
        order = np.lexsort((np.arange(size), -norms, -scores, -votes))
        keep = torch.zeros(size, dtype=torch.bool)
        keep[torch.from_numpy(order[: widths[group]].copy())] = True
        chosen[group] = keep
    return Masks(chosen)


def _sizes(masks: Mapping[str, Masks]) -> dict[str, int]:
    """Number of units of each group, which must be the same in all `masks`."""
    if not masks:
        raise ValueError("Expected argument `masks` to hold at least one neighbour, but got none. Is the zoo empty?")
    first = min(masks)  # by name, because the order of the mapping must not matter
    for name, each in masks.items():
        if each.sizes != masks[first].sizes:
            raise ValueError(f"Expected masks of the same groups, but those of {name!r} and {first!r} differ.")
    return masks[first].sizes
