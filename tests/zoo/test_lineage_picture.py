"""The picture of a lineage has a point for each entry and a line from each parent that is there."""

from __future__ import annotations

from matplotlib.collections import LineCollection

from lightning_mvp.zoo.lineage import Member
from lightning_mvp.zoo.lineage_picture import draw_lineage

MEMBERS = [
    Member("a", "cats", 0, 0, (), 0.7, ""),
    Member("b", "dogs", 0, 0, (), None, ""),
    Member("c", "pets", 1, 1, ("a", "b"), 0.75, ""),
    Member("d", "farm", 2, 2, ("c", "gone"), 0.8, ""),
]


def test_each_entry_stands_at_its_wave_and_accuracy_with_lines_from_its_parents() -> None:
    figure = draw_lineage(MEMBERS, "Zoo")
    (axes,) = figure.axes
    seeds, grown, *_ = axes.lines
    assert list(grown.get_xdata()) == [1, 2]
    assert [round(value) for value in grown.get_ydata()] == [75, 80]
    assert min(seeds.get_ydata()) < 70, "one whose accuracy is not known stands below the others"
    (lines,) = (each for each in axes.collections if isinstance(each, LineCollection))
    assert len(lines.get_segments()) == 3, "a parent that is gone has no place"
    assert "Voters that are no longer there: 1." in figure.texts[1].get_text()
    assert {text.get_text() for text in axes.texts} >= {"cats", "dogs", "pets", "farm"}


def test_names_are_left_out_where_there_are_too_many() -> None:
    many = [Member(str(n), f"task-{n}", n, n, (str(n - 1),) if n else (), 0.5, "") for n in range(40)]
    figure = draw_lineage(many, "Zoo")
    assert not any(text.get_text().startswith("task") for text in figure.axes[0].texts)
    figure.draw_without_rendering()
