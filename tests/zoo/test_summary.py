"""A listing survives whatever headers hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.summary import summarise, validation_accuracy


@pytest.mark.parametrize(
    ("info", "accuracy"),
    [
        ({"metrics": {"val_accuracy": 0.5, "val_acc": 0.1}}, 0.5),
        ({"metrics": {"val/acc": 0.25, "train_accuracy": 0.9}}, 0.25),
        ({"metrics": {"val_accuracy": None}}, None),
        ({"metrics": {"train_accuracy": 0.9}}, None),
        ({"metrics": "none"}, None),
        ({}, None),
    ],
)
def test_only_accuracy_on_validation_data_is_listed(info: dict[str, Any], accuracy: float | None) -> None:
    assert validation_accuracy(info) == accuracy


def test_a_link_to_nothing_does_not_end_the_listing(fill: Callable[..., ModelZoo]) -> None:
    zoo = fill("alpha", "beta")
    file = zoo.file(zoo.names[0])
    file.unlink()
    file.symlink_to(file.with_name("gone"))
    assert [each.name for each in summarise(zoo) if each.problem is None] == [zoo.names[-1]]


def test_an_unknown_order_is_refused(fill: Callable[..., ModelZoo]) -> None:
    with pytest.raises(ValueError, match="`sort` to be one of"):
        summarise(fill("alpha"), "colour")  # type: ignore[arg-type]
