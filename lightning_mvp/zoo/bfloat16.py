"""float32 in half the bytes: bfloat16 as its bit patterns, since NumPy has no such type. Needs no torch.

A bfloat16 is the upper half of a float32: the same range, and 8 bits of precision instead of 24.
"""

from __future__ import annotations

import numpy as np

# Halfway from the largest bfloat16 to what would be the next: from here on, rounding gives infinity.
_TOO_LARGE = np.uint32(0x7F7F8000)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of each value, of two equally near ones the one whose last bit is 0.

    Args:
        values: A float32 array of any shape.

    Returns:
        The bit patterns, uint16 of that shape.

    Raises:
        ValueError: A value is not finite, or would not be finite in bfloat16.

    Example:
        >>> from_bfloat16(to_bfloat16(np.array([1.0, 1.001, -3.14159], np.float32))).tolist()
        [1.0, 1.0, -3.140625]
    """
    bits = values.view(np.uint32)
    if ((bits & 0x7FFFFFFF) >= _TOO_LARGE).any():
        raise ValueError(
            "Expected values that are finite in bfloat16, which ends at 3.3895e38, but the largest is "
            f"{np.abs(values).max():.5g}."
        )
    # Just below half of the last kept bit, and one more where that bit is set: a tie carries into odd ones only.
    last = (bits >> 16) & 1
    return np.asarray((bits + last + 0x7FFF) >> 16, np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns: exact, as each bfloat16 is a float32.

    Args:
        bits: A uint16 array of any shape.

    Returns:
        A new float32 array of that shape.

    Example:
        >>> from_bfloat16(np.array([0x3F80, 0xC049], np.uint16)).tolist()
        [1.0, -3.140625]
    """
    wide = np.array(bits, np.uint32)
    wide <<= 16
    return wide.view(np.float32)
