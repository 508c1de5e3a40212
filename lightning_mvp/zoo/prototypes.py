"""How alike two tasks are by their prototypes, the class means of θ⁰'s features. Needs NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_mvp.fingerprint import to_array


def prototype_similarity(source: Any, target: Any) -> float:
    r"""How well the source's class means cover the target's, in θ⁰'s feature space (ours):
    :math:`\frac{1}{C_t} \sum_y \max_z \cos(p^t_y - c,\; p^s_z - c)`, with c midway between the means of both sets.

    Args:
        source: ``(C_s, D)`` class means of features, an array or a tensor.
        target: ``(C_t, D)``.

    Returns:
        A number in [−1, 1]; 1 if every target class is a source class. Comparable between sources of any class count.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> round(prototype_similarity(np.eye(3), np.eye(3)), 6)
        1.0
    """
    ours, theirs = _as_float64(source), _as_float64(target)
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1] or not (len(ours) and len(theirs)):
        raise ValueError(
            "Expected arguments `source` and `target` of shapes (classes, D) with the same D, "
            f"but got {ours.shape} and {theirs.shape}."
        )
    centre = (ours.mean(0) + theirs.mean(0)) / 2
    cosines = _unit_rows(theirs - centre) @ _unit_rows(ours - centre).T
    return float(cosines.max(1).mean())


def _as_float64(value: Any) -> np.ndarray:
    # A bfloat16 tensor has no NumPy type of its own.
    return np.asarray(to_array(value.double() if hasattr(value, "double") else value), dtype=np.float64)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
