"""The page about a zoo puts similar tasks side by side, in one order on both sides, with names that can be read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mvp.zoo import ZooEntry, entry_id
from lightning_mvp.zoo.picture import MOST_LABELS, Relations, draw_relations, relations


def families(count: int, of: int = 3) -> list[ZooEntry]:
    """Tasks of several families in turn: masks and prototypes are near those of the family."""
    rng = np.random.default_rng(0)
    scores, centres = rng.normal(size=(of, 60)), rng.normal(size=(of, 4, 16))
    entries = []
    for index in range(count):
        name = f"task-{index:03d}"
        own = scores[index % of] + 0.5 * rng.normal(size=60)
        entries.append(
            ZooEntry(
                entry_id(name, {}),
                {"name": name, "classes": list("abcd")},
                {},
                {"conv": own >= np.sort(own)[-20]},
                {},
                prototypes=centres[index % of] + 0.5 * rng.normal(size=(4, 16)),
            )
        )
    return entries


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images and axes.get_title("left")]


def test_similar_tasks_stand_side_by_side_and_every_matrix_follows() -> None:
    entries = families(12)
    found = relations(entries)
    family = [int(task[-3:]) % 3 for task in found.tasks]
    assert sum(a != b for a, b in pairwise(family)) == 2, "three blocks"
    masks = {entry.name: entry.masks["conv"] for entry in entries}
    for i, one in enumerate(found.names):
        for j, other in enumerate(found.names):
            both = masks[one] & masks[other]
            assert found.iou[i, j] == pytest.approx(both.sum() / (masks[one] | masks[other]).sum())
    assert found.correlation is not None
    assert found.correlation > 0.7
    values = found.to_dict()
    assert values["correlation"] == pytest.approx(
        np.corrcoef(found.iou[np.triu_indices(12, 1)], found.similarity[np.triu_indices(12, 1)])[0, 1]
    )
    assert values["iou"] > values["random_iou"]
    assert relations(entries[::-1]).iou.sum() == pytest.approx(found.iou.sum())


@pytest.mark.parametrize(("count", "labels", "numbers"), [(2, 1, 2), (12, 11, 132), (60, 59, 0), (150, 50, 0)])
def test_names_are_thinned_and_numbers_left_out_where_there_is_no_room(count: int, labels: int, numbers: int) -> None:
    figure = draw_relations(relations(families(count)), "Zoo")
    left, right = panels(figure)
    for axes in (left, right):
        assert len(axes.get_yticklabels()) == len(axes.get_xticklabels()) == labels <= MOST_LABELS
    rows, others = ([label.get_text() for label in axes.get_yticklabels()] for axes in (left, right))
    assert rows == [f"{name}: a, b, c, d" for name in others], "both in the same order; classes are named once"
    columns = [label.get_text() for label in left.get_xticklabels()]
    if count == 12:  # each pair once: no column for the last task, no row for the first
        assert columns[1:] == others[:-1]
    assert sum(len(axes.texts) for axes in (left, right)) == numbers
    assert (left.get_xlabel() == "every third task is named") == (count == 150)


def test_the_page_says_its_numbers() -> None:
    found = relations(families(12))
    figure = draw_relations(found, "Zoo pets")
    assert figure.get_suptitle().startswith("Zoo pets: ")
    assert figure.texts[1].get_text().startswith("12 tasks, each pair once")
    assert figure.texts[1].get_text().endswith(f"over 66 pairs: r = {found.correlation:.2f}")
    left, right = panels(figure)
    assert f"mean {found.pairs(found.iou).mean():.2f}" in left.get_title("left")
    assert f"random masks of the same widths: {found.random_iou[0, 1]:.2f} everywhere" in left.get_title("left")
    assert "prototype similarity, mean" in right.get_title("left")
    shown = left.images[0].get_array().filled(np.nan)
    assert np.isnan(shown[np.triu_indices(11, 1)]).all(), "each pair is drawn once"
    assert not np.isnan(shown[np.tril_indices(11)]).any()
    assert left.images[0].get_clim()[0] == pytest.approx(found.random_iou[0, 1]), "the scale begins at chance"


def test_equal_tasks_have_no_correlation_and_still_a_page() -> None:
    same = np.full((3, 3), 0.5)
    found = Relations(("a", "b", "c"), ("a", "b", "c" * 80), (("x",), ("x",), ()), same, same, same, "shared classes")
    assert found.correlation is None
    figure = draw_relations(found, "Zoo")
    assert "not defined" in figure.texts[1].get_text()
    assert len(panels(figure)[0].get_yticklabels()[1].get_text()) < 30
    figure.draw_without_rendering()


def test_one_task_is_not_compared() -> None:
    with pytest.raises(ValueError, match="at least two sound entries of one config to compare, but got 1"):
        relations(families(1))
