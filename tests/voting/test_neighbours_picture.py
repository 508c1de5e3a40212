"""The picture of a vote says who voted, how near each is and how much it counted."""

from __future__ import annotations

from typing import Any

from lightning_mvp.voting.neighbours_picture import draw_neighbours

NEIGHBOURS = [
    {"name": "cats--1", "score": -1.2, "shared_classes": 3},
    {"name": "dogs--1", "score": -1.5, "shared_classes": 0},
]
REPORT: dict[str, Any] = {"neighbours": NEIGHBOURS, "coefficients": {"cats--1": 3.0, "dogs--1": 1.0}, "entries": 40}


def test_each_neighbour_is_a_row_with_its_score_share_and_shared_classes() -> None:
    score, share, shared = draw_neighbours(REPORT, "pets").axes
    assert [label.get_text() for label in score.get_yticklabels()] == ["cats", "dogs"]
    words = [[text.get_text() for text in axes.texts] for axes in (score, share, shared)]
    assert words == [["−1.200", "−1.500"], ["75 %", "25 %"], ["3", "0"]]
    assert [bar.get_width() for bar in share.patches] == [75, 25]


def test_where_classes_are_not_known_there_is_no_panel_for_them() -> None:
    unknown = [{**each, "shared_classes": None} for each in NEIGHBOURS]
    figure = draw_neighbours({**REPORT, "neighbours": unknown, "entries": 0}, "pets")
    assert len(figure.axes) == 2
    assert figure.texts[1].get_text() == "2 of the zoo voted, nearest first."


def test_one_neighbour_is_drawn_too() -> None:
    figure = draw_neighbours({**REPORT, "neighbours": NEIGHBOURS[:1], "coefficients": {"cats--1": 0.5}}, "pets")
    assert [text.get_text() for text in figure.axes[1].texts] == ["100 %"]
    figure.draw_without_rendering()
