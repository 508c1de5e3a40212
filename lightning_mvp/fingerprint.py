"""One fingerprint for weights, masks and θ⁰, the same in every part of the library. Needs NumPy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_array(value: Any) -> np.ndarray:
    """A NumPy view (where possible) of an array or of anything with torch's `detach().cpu().numpy()`."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def fingerprint(state: Mapping[str, Any]) -> str:
    """SHA-256 over the tensors of `state`, sorted by name: each as ``[name, dtype, shape]`` in JSON, then its bytes.

    Two states have one fingerprint iff they hold the same names, types, shapes and (little-endian, C-order) bytes.

    Args:
        state: name → NumPy array or torch tensor (on any device, with or without gradient).

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import numpy as np
        >>> state = {"b": np.zeros(2, np.float32), "a": np.arange(3)}
        >>> fingerprint(state) == fingerprint(dict(reversed(state.items())))
        True
        >>> fingerprint(state) == fingerprint({**state, "a": np.arange(3)[::-1]})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        array = to_array(state[name])
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="C"))
    return digest.hexdigest()
