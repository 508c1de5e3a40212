"""Whether two measures over all pairs of tasks go together: Mantel's permutation test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Mantel(NamedTuple):
    """Pearson's correlation over pairs, and the share of permutations with one at least as far from 0."""

    correlation: float
    p: float


def mantel(a: np.ndarray, b: np.ndarray, permutations: int = 1999, seed: int = 0) -> Mantel:
    r"""Correlation of two symmetric matrices' off-diagonal entries, with a p-value for pairs that share tasks.

    :math:`p = (1 + \#\{|r_\pi| \ge |r|\}) / (1 + N)`, with :math:`r_\pi` after the same permutation of the rows and
    columns of `b` (Mantel, "The detection of disease clustering", Cancer Research 1967).

    Args:
        a: ``(n, n)``, symmetric. Its diagonal does not count.
        b: ``(n, n)``, symmetric. Its diagonal does not count.
        permutations: the number of random permutations, N.
        seed: of the permutations.

    Returns:
        The correlation and p; NaN and 1 where one of the two matrices does not vary.

    Example:
        >>> a = np.array([[0, 1, 2, 5], [1, 0, 3, 4], [2, 3, 0, 6], [5, 4, 6, 0]])
        >>> round(mantel(a, 2 * a).correlation, 6)
        1.0
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"Expected two square matrices of one size, but got {a.shape} and {b.shape}.")
    pairs = np.triu_indices(len(a), 1)
    x = np.asarray(a, dtype=float)[pairs]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(np.asarray(b)[pairs]) == 0:
        return Mantel(float("nan"), 1.0)
    x = (x - x.mean()) / x.std()

    def correlation(order: np.ndarray) -> float:
        y = np.asarray(b, dtype=float)[np.ix_(order, order)][pairs]
        return float((x * (y - y.mean())).mean() / y.std())

    generator, found = np.random.default_rng(seed), correlation(np.arange(len(a)))
    least = abs(found) - 1e-12
    extreme = sum(abs(correlation(generator.permutation(len(a)))) >= least for _ in range(permutations))
    return Mantel(found, (1 + extreme) / (1 + permutations))
