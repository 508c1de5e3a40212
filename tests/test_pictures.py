"""What all pictures have in common, and the drawing of the method."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lightning_mvp import pictures
from lightning_mvp.pictures import apart, chunks, label_ends, page, save_beside, styled

METHOD = Path(__file__).parents[1] / "docs" / "pictures" / "method.py"


def test_names_that_would_overlap_are_moved_apart_and_keep_their_order():
    places = [3.0, 1.0, 1.1, 1.05, 9.0]
    moved = apart(places, 1.0)
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert all(above - below > 1 - 1e-9 for below, above in pairwise(sorted(moved)))
    assert moved[4] == 9.0, "what has room stays"


def test_labels_stand_beside_the_ends_of_lines_without_overlap():
    figure = page(3, "Title", "About")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    label_ends(axes, [(1, 1.0, "one", "black"), (1, 1.0, "other", "black")])
    figure.draw_without_rendering()
    first, second = (text.get_window_extent() for text in axes.texts)
    assert not first.overlaps(second)
    assert first.x0 > axes.transData.transform((1, 1))[0], "to the right of the point"


def test_parts_have_at_most_six_members_and_lose_none():
    for count in range(1, 20):
        parts = list(chunks(range(count)))
        assert [member for part in parts for member in part] == list(range(count))
        assert max(map(len, parts)) <= pictures.MOST_SERIES


def test_a_picture_that_cannot_be_made_takes_no_result_with_it(tmp_path: Path):
    picture = tmp_path / "run.png"
    with pytest.warns(UserWarning, match=r"run\.png could not be made \(ZeroDivisionError"):
        save_beside(picture, lambda: Figure(figsize=(1 / 0, 1)))
    assert not list(tmp_path.iterdir())
    save_beside(picture, lambda: Figure(figsize=(1, 1)))
    with pytest.warns(UserWarning, match="All else is done"):
        save_beside(picture / "inside.png", lambda: Figure(figsize=(1, 1)))
    assert list(tmp_path.iterdir()) == [picture]


def test_a_users_own_settings_neither_change_pictures_nor_are_changed():
    @styled
    def draw() -> Figure:
        figure = page(2, "Title")
        figure.subplots().plot([0, 1])
        return figure

    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.spines.top": True}):
        axes = draw().axes[0]
        assert axes.lines[0].get_linewidth() == pictures.STYLE["lines.linewidth"]
        assert not axes.spines["top"].get_visible()
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_colours_can_be_read_as_text_on_white():
    def light(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    for colour in (*pictures.PALETTE, pictures.QUIET):
        red, green, blue = map(light, to_rgb(colour))
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) > 3.5, colour


def test_the_drawing_of_the_method_votes_as_the_method_does():
    drawing = runpy.run_path(str(METHOD))
    for votes in drawing["voted"]():
        stays = drawing["winners"](votes)
        assert votes[stays].min() >= votes[~stays].max()
    axes = drawing["draw"]().axes[0]
    words = " ".join(text.get_text() for text in axes.texts)
    assert all(word in words for word in ("Zoo", "Neighbours", "Vote", "Small model"))
    assert len(words.split()) <= 60, "no more text than needed"
    for name in ("method.svg", "method.png"):
        assert METHOD.with_name(name).stat().st_size > 10_000
