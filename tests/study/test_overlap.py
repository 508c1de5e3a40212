"""Overlap of masks, and what chance alone would give."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.study.overlap import expected_random_iou, magnitude_masks, overlap
from lightning_mvp.zoo.zoo import ModelZoo

from ..callbacks.user import RECIPE


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


def test_overlap_gives_iou_beside_the_expectation_of_each_groups_own_widths() -> None:
    a = Masks({"conv": torch.tensor([1, 1, 0, 0]) > 0, "mlp": torch.tensor([1, 1]) > 0})
    b = Masks({"conv": torch.tensor([0, 1, 1, 0]) > 0, "mlp": torch.tensor([1, 0]) > 0})
    found = overlap(a, b)
    assert found["conv"] == (pytest.approx(1 / 3), pytest.approx(brute_force(4, 2, 2)))
    assert found["mlp"] == (0.5, pytest.approx(0.5))


def test_theta0s_own_masks_keep_its_largest_units(tmp_path: Path) -> None:
    backbone = create_backbone(RECIPE)
    groups = find_groups(backbone, torch.zeros(1, 3, 32, 32), check=False)
    name = groups.names[0]
    with torch.no_grad():
        for member in groups[name].members:
            if member.role != "statistic":  # unit 3 dwarfs all others
                backbone.state_dict()[member.tensor].index_fill_(member.axis, torch.as_tensor(member.index[3]), 9.0)
    theta0 = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    zoo = ModelZoo.create(tmp_path / "zoo", RECIPE, theta0, groups.sizes)
    masks = magnitude_masks(zoo, dict.fromkeys(groups.names, 1))
    assert masks[name].nonzero().tolist() == [[3]]
    assert set(masks.kept.values()) == {1}
