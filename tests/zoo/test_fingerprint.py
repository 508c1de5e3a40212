from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mvp.fingerprint import fingerprint

STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, dtype=np.int64)}


def test_order_layout_and_library_do_not_matter() -> None:
    tensors = {name: torch.from_numpy(value.copy()) for name, value in reversed(STATE.items())}
    tensors["a"] = tensors["a"].t().contiguous().t().requires_grad_()
    assert fingerprint(tensors) == fingerprint(STATE)
    assert fingerprint({**STATE, "a": STATE["a"].astype(">f4")}) == fingerprint(STATE)


@pytest.mark.parametrize(
    "other",
    [
        {"a": STATE["a"]},
        {**STATE, "c": np.zeros(0)},
        {"a": STATE["a"], "c": STATE["b"]},
        {**STATE, "a": STATE["a"].reshape(3, 2)},
        {**STATE, "a": STATE["a"].view(np.int32)},
        {**STATE, "a": np.nextafter(STATE["a"], np.float32(9))},
    ],
    ids=["missing", "more", "renamed", "shape", "type", "value"],
)
def test_everything_else_matters(other: dict[str, np.ndarray]) -> None:
    assert fingerprint(other) != fingerprint(STATE)
