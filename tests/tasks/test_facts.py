from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lightning_mvp.tasks import TaskFacts

GOOD: dict[str, Any] = {"name": "pets", "classes": ("cat", "dog"), "input_size": 8, "mean": (0.5,), "std": (0.25,)}


def test_facts_survive_json() -> None:
    facts = TaskFacts(**GOOD, interpolation="bicubic", crop=0.875)
    assert TaskFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("classes", ()),
        ("classes", "cat"),
        ("classes", ("cat", "cat")),
        ("input_size", 0),
        ("input_size", 8.0),
        ("mean", (0.5, 0.5)),
        ("mean", (float("nan"),)),
        ("std", (0.0,)),
        ("interpolation", "sinc"),
        ("crop", 0.0),
        ("crop", 1.1),
    ],
)
def test_bad_facts_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}`"):
        TaskFacts(**{**GOOD, field: value})


def test_missing_and_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"missing \['std'\], unknown \['sdt'\]"):
        TaskFacts.from_dict({**{k: v for k, v in GOOD.items() if k != "std"}, "sdt": (0.25,)})


def test_facts_and_splits_need_no_torch() -> None:
    code = "import sys; from lightning_mvp.tasks import TaskFacts, split_tasks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
