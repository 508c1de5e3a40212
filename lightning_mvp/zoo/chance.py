"""What two masks have in common by chance alone. Needs NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def expected_random_iou(units: int, kept_a: ArrayLike, kept_b: ArrayLike) -> np.ndarray:
    r"""The IoU expected of two independent uniformly random masks.

    :math:`E = \sum_i P(i)\, i / (a + b - i)` with the hypergeometric
    :math:`P(i) = \binom{a}{i}\binom{n-a}{b-i} / \binom{n}{b}` for an intersection of i units.

    Args:
        units: The number n of units of the group.
        kept_a: The number a of units that the one mask keeps; a number or an array.
        kept_b: The number b of units that the other mask keeps; it is broadcast against a.

    Returns:
        The expectation in [0, 1], of the broadcast shape; 1 where both keep all.

    Example:
        >>> float(expected_random_iou(2, 1, 1))  # the same unit half of the time
        0.5
        >>> expected_random_iou(10, 10, [10, 5]).tolist()
        [1.0, 0.5]
    """
    a, b = (np.asarray(kept)[..., None] for kept in (kept_a, kept_b))
    both = np.arange(int(min(a.max(), b.max())) + 1)
    possible = (both <= np.minimum(a, b)) & (both >= a + b - units) & (a + b > both)
    # Impossible intersections are computed for i = 0 of an empty choice instead, and weigh nothing.
    a, b, i = (np.where(possible, value, 0) for value in (a, b, both))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, units + 1)))])

    def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    # Logarithms: the binomials of a group of 2048 units have 600 digits.
    probability = np.exp(log_choose(a, i) + log_choose(units - a, b - i) - log_choose(np.full_like(b, units), b))
    return (probability * possible * i / np.maximum(a + b - i, 1)).sum(-1)
