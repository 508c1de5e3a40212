"""Mantel's test: what goes together is found, what does not is not, and pairs that share tasks fool nobody."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_mvp.study.mantel import mantel


def symmetric(n: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(n, n))
    return values + values.T


def test_the_correlation_is_pearsons_over_pairs() -> None:
    a, b = symmetric(8, 0), symmetric(8, 1)
    pairs = np.triu_indices(8, 1)
    assert mantel(a, b, 9).correlation == pytest.approx(np.corrcoef(a[pairs], b[pairs])[0, 1])


def test_a_matrix_goes_with_itself_and_with_its_negative() -> None:
    a = symmetric(12, 0)
    assert mantel(a, a, 199) == (pytest.approx(1), 1 / 200)
    assert mantel(a, -a, 199) == (pytest.approx(-1), 1 / 200)


def test_unrelated_matrices_are_called_related_as_rarely_as_promised() -> None:
    found = [mantel(symmetric(8, seed), symmetric(8, 1000 + seed), 99, seed).p for seed in range(200)]
    assert 0.01 < np.mean([p <= 0.05 for p in found]) < 0.1


def test_one_odd_task_does_not_make_thirty_independent_pairs() -> None:
    """Distances from one task to all others: 15 pairs move together, in two matrices by chance at the same task."""
    odd = np.zeros((16, 16))
    odd[0] = odd[:, 0] = 1
    result = mantel(odd, odd + 1e-3 * symmetric(16, 0), 999)
    assert result.correlation > 0.99
    assert 0.03 < result.p < 0.12, "one place of sixteen: by chance in one of sixteen permutations"


def test_what_does_not_vary_goes_with_nothing() -> None:
    assert np.isnan(mantel(np.ones((4, 4)), symmetric(4, 0)).correlation)
    assert mantel(np.ones((4, 4)), symmetric(4, 0)).p == 1


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two square matrices of one size, but got \(3, 3\) and \(4, 4\)"):
        mantel(np.ones((3, 3)), np.ones((4, 4)))
