"""Overlap of all pairs of zoo tasks, beside chance, and what it goes together with."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.weights import save_weights
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.overlap import leep_matrix, study_overlap
from lightning_mvp.study.records import rank_part, write_record
from lightning_mvp.study.report_plots import overlap_by_group
from lightning_mvp.zoo.chance import expected_random_iou

from ..backbones.recipes import recipe


def brute_force(units: int, kept_a: int, kept_b: int) -> float:
    """The mean IoU over all pairs of masks of these widths."""
    pairs = [(set(a), set(b)) for a in combinations(range(units), kept_a) for b in combinations(range(units), kept_b)]
    return fmean(len(a & b) / len(a | b) if a | b else 0.0 for a, b in pairs)


@pytest.mark.parametrize("units", [1, 2, 5, 6])
def test_the_expected_iou_is_the_mean_over_all_pairs_of_masks(units: int) -> None:
    for kept_a in range(units + 1):
        for kept_b in range(units + 1):
            expected = brute_force(units, kept_a, kept_b)
            assert expected_random_iou(units, kept_a, kept_b) == pytest.approx(expected), (kept_a, kept_b)


def test_the_expectation_is_exact_at_the_size_of_real_groups() -> None:
    assert expected_random_iou(2048, 2048, 2048) == 1.0
    assert expected_random_iou(2048, 2048, 512) == pytest.approx(0.25)
    assert expected_random_iou(2048, 410, 300) == pytest.approx(expected_random_iou(2048, 300, 410))


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    path = tmp_path / "theta0.safetensors"
    save_weights(create_backbone(recipe("resnet_mini")), path)
    return Origin(recipe("resnet_mini"), path, (3, 32, 32), None, None)


def sources_of(origin: Origin, classes: list[str]) -> list[dict[str, object]]:
    """Tasks whose masks follow their classes: each letter stands for some units, in three rounds."""
    records = []
    for letters in classes:
        rounds = []
        for number in range(3):
            kept = {}
            for group, size in origin.groups.sizes.items():
                units = [
                    (3 * (ord(letter) - ord("a")) + step) % size for letter in letters for step in range(3 - number)
                ]
                kept[group] = sorted(set(units))
            rounds.append({"pruning_ratio": 0.5 + number / 10, "kept": kept})
        records.append({"classes": list(letters), "rounds": rounds})
    return records


def test_masks_that_follow_the_classes_are_found_to(origin: Origin) -> None:
    classes = ["abc", "abd", "cde", "cdf", "efg", "afg"]
    alike = np.array([[len(set(a) & set(b)) for b in classes] for a in classes], dtype=float)
    superclass_of = {letter: "vowel" if letter in "aeiou" else "other" for letter in "abcdefg"}
    rows = study_overlap(sources_of(origin, classes), origin, -1 / (1 + alike), superclass_of)
    every = [*origin.groups.names, "all residual", "all conv", "all"]
    assert [row.pruning_ratio for row in rows[:: len(every)]] == [0.5, 0.6, 0.7]
    assert [row.group for row in rows[: len(every)]] == every
    of_kinds = {row.group: row.units for row in rows[: len(every)] if row.depth < 0}
    assert of_kinds == {"all residual": 224, "all conv": 224, "all": 448}
    for row in rows:
        assert row.classes > 0.9, row
        assert row.classes_p < 0.05
        assert row.leep > 0.8
        assert row.random < row.iou or row.iou < 0.3
        assert 0 <= row.magnitude <= 1
    last = rows[-1]
    assert (last.depth, last.units, last.kept) == (-1, sum(origin.groups.sizes.values()), 3 * len(origin.groups))
    panels = overlap_by_group(rows).axes
    assert [axes.get_title("left") for axes in panels[3:]] == ["LEEP", "shared classes", "shared superclasses"]
    assert all(axes.get_title("left").endswith("% of units removed") for axes in panels[:3]), "one ratio a panel"


def test_without_superclasses_nothing_is_said_of_them(origin: Origin) -> None:
    row = study_overlap(sources_of(origin, ["ab", "bc", "cd"]), origin, np.zeros((3, 3)))[0]
    assert np.isnan(row.superclasses)
    assert np.isnan(row.leep), "it does not vary"


def test_leep_of_a_pair_is_the_mean_of_both_directions(tmp_path: Path) -> None:
    tasks = ("source-000", "source-001")
    for task, scores in zip(tasks, ((0.0, -1.0), (-3.0, 0.0)), strict=True):
        found = [{"name": f"{name}--hash", "score": score} for name, score in zip(tasks, scores, strict=True)]
        write_record(tmp_path, rank_part(task, "leep"), {"similarities": [*found, {"name": "other--x", "score": 9.0}]})
    assert leep_matrix(tmp_path, tasks).tolist() == [[0, -2], [-2, 0]]


def test_masks_of_a_group_have_an_iou() -> None:
    a = Masks({"conv": torch.tensor([1, 1, 0, 0]) > 0})
    b = Masks({"conv": torch.tensor([0, 1, 1, 0]) > 0})
    assert a.iou(b)["conv"] == pytest.approx(1 / 3)
