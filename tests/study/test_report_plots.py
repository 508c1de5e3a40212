"""What a picture says is not an accident of which targets were put into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.study.report_plots import correlation, similarity_against_shared_classes

GENERAL = Path(__file__).parents[2] / "benchmarks" / "cifar100" / "general"


def rankings_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rankings of all entries, from the runs in which all of them voted."""
    votes = [run for run in runs if run["method"] == "all_vote"]
    return [{"similarities": run["neighbours"], "classes": len(run["classes"])} for run in votes]


def target(classes: int, scores: list[float], shared: list[int]) -> dict[str, Any]:
    pairs = zip(scores, shared, strict=True)
    return {"classes": classes, "similarities": [{"score": score, "shared_classes": count} for score, count in pairs]}


def test_targets_of_several_class_counts_give_the_correlation_that_each_has_alone():
    """Five classes: higher scores, fewer shared; pooled, the sign is wrong."""
    few, many = target(5, [-1.0, -0.9], [0, 1]), target(20, [-2.5, -2.4], [2, 3])
    pooled = [each for ranking in (few, many) for each in ranking["similarities"]]
    assert correlation([each["shared_classes"] for each in pooled], [each["score"] for each in pooled]) < -0.8
    alone = target(10, [-1.5, -1.5], [0, 0])
    axes = similarity_against_shared_classes([few, many, alone]).axes[0]
    assert axes.get_title().endswith("correlation within a target 1.00")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"1 target of {count} classes" for count in (5, 10, 20)
    ]
    first = axes.collections[0].get_offsets()[0]
    assert first[1] == pytest.approx(1 - 1.0 / 1.6094379)
    assert len(axes.lines) == 2, "a mean of targets that share nothing with anybody says nothing"


def test_a_measure_that_is_not_leep_is_drawn_as_it_is():
    axes = similarity_against_shared_classes([target(5, [0.2, 0.4], [0, 0])], "Similarity (prototypes)").axes[0]
    assert axes.get_title().endswith("within a target n/a")
    assert axes.collections[0].get_offsets()[0][1] == pytest.approx(0.2)


def test_in_the_committed_runs_leep_goes_with_shared_classes_within_targets():
    runs = [json.loads(line) for line in (GENERAL / "results.jsonl").read_text().splitlines()]
    axes = similarity_against_shared_classes(rankings_of(runs)).axes[0]
    assert axes.get_title().endswith("within a target 0.69")
