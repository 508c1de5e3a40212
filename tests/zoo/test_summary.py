"""A listing survives whatever headers hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lightning_mvp.zoo import ModelZoo
from lightning_mvp.zoo.summary import EntrySummary, summarise, validation_accuracy
from lightning_mvp.zoo.tables import entries_tables


@pytest.mark.parametrize(
    ("info", "accuracy"),
    [
        ({"metrics": {"val_accuracy": 0.5, "val_acc": 0.1}}, 0.5),
        ({"metrics": {"validTop1": 0.3, "val_loss": 0.2, "val_f1_step": 0.1}}, 0.3),
        ({"metrics": {"validation/MulticlassAccuracy": 0.4, "val/f1": 0.2}}, 0.4),
        ({"metrics": {"val_loss": 0.2, "valve_acc": 0.1}, "start_val_accuracy": 0.9}, None),
        ({"metrics": {"val/acc": 0.25, "train_accuracy": 0.9}}, 0.25),
        ({"metrics": {"val_accuracy": None}}, None),
        ({"metrics": {"train_accuracy": 0.9}}, None),
        ({"metrics": "none"}, None),
        ({}, None),
    ],
)
def test_only_accuracy_on_validation_data_is_listed(info: dict[str, Any], accuracy: float | None) -> None:
    assert validation_accuracy(info) == accuracy


def test_where_no_accuracy_is_found_the_table_says_what_was_looked_for() -> None:
    known, unknown = (
        EntrySummary(f"one--{key}", key, 1, "one", 2, value, family=key) for key, value in (("aa", 0.5), ("bb", None))
    )
    first, second = entries_tables([replace(each, family=each.config) for each in (known, unknown)])
    assert first.caption is None
    assert "Looked for: an accuracy on validation data: val_accuracy, val/accuracy" in str(second.caption)


def test_a_link_to_nothing_does_not_end_the_listing(fill: Callable[..., ModelZoo]) -> None:
    zoo = fill("alpha", "beta")
    file = zoo.file(zoo.names[0])
    file.unlink()
    file.symlink_to(file.with_name("gone"))
    assert [each.name for each in summarise(zoo) if each.problem is None] == [zoo.names[-1]]


def test_an_unknown_order_is_refused(fill: Callable[..., ModelZoo]) -> None:
    with pytest.raises(ValueError, match="`sort` to be one of"):
        summarise(fill("alpha"), "colour")  # type: ignore[arg-type]
