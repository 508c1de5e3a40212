"""What tasks of a zoo have in common: against the definitions written as loops, and against chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from lightning_mvp.zoo import ModelZoo, ZooEntry
from lightning_mvp.zoo.chance import expected_random_iou
from lightning_mvp.zoo.kinship import mask_overlap, nearest_relatives, readable_entries, similarities
from lightning_mvp.zoo.prototypes import prototype_similarity

from .entries import make_entry


def exact(units: int, a: int, b: int) -> float:
    """The expectation in whole numbers."""
    ways = [(i, comb(a, i) * comb(units - a, b - i)) for i in range(max(0, a + b - units), min(a, b) + 1)]
    return sum(count / comb(units, b) * i / (a + b - i) for i, count in ways)


def test_the_chance_level_of_many_widths_at_once_is_that_of_each_exactly() -> None:
    a, b = np.array([1, 10, 200, 400]), np.array([3, 100, 400])
    found = expected_random_iou(400, a[:, None], b[None])
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, [[exact(400, i, j) for j in b.tolist()] for i in a.tolist()], rtol=1e-10)


def random_masks(count: int, keep: Callable[[np.random.Generator], float]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(count):
        mask = {group: rng.random(size) < keep(rng) for group, size in (("stem", 8), ("block", 24))}
        for values in mask.values():
            values[rng.integers(len(values))] = True  # something is always kept
        masks.append(mask)
    return masks


def test_overlap_is_the_mean_over_groups_weighted_by_units() -> None:
    masks = random_masks(5, lambda rng: rng.uniform(0.2, 0.6))
    iou, random = mask_overlap(masks[:2], masks)
    assert iou.shape == random.shape == (2, 5)
    for i, a in enumerate(masks[:2]):
        for j, b in enumerate(masks):
            own = [(a[g] & b[g]).sum() / (a[g] | b[g]).sum() for g in ("stem", "block")]
            chance = [exact(len(a[g]), int(a[g].sum()), int(b[g].sum())) for g in ("stem", "block")]
            assert iou[i, j] == pytest.approx((8 * own[0] + 24 * own[1]) / 32)
            assert random[i, j] == pytest.approx((8 * chance[0] + 24 * chance[1]) / 32)
    assert iou[0, 0] == iou[1, 1] == 1


def test_random_masks_overlap_as_much_as_is_expected_of_them() -> None:
    iou, random = mask_overlap(*[random_masks(60, lambda rng: 0.3)] * 2)
    pairs = np.triu_indices(60, 1)
    assert iou[pairs].mean() == pytest.approx(random[pairs].mean(), abs=0.01)


def test_a_group_that_both_keep_whole_is_left_out() -> None:
    whole, half = np.ones(4, bool), np.array([True, True, False, False])
    masks = [{"out": whole, "conv": half}, {"out": whole, "conv": ~half}, {"out": half, "conv": half}]
    iou, random = mask_overlap(masks, masks)
    assert iou[0].tolist() == [1.0, 0.0, 0.75], "`out` counts only where one of the two did not keep it whole"
    assert random[0, 1] == pytest.approx(exact(4, 2, 2))
    iou, random = mask_overlap([{"out": whole}], [{"out": whole}])
    assert iou.tolist() == random.tolist() == [[1.0]]


def test_relatives_come_best_first_by_prototypes_then_by_masks() -> None:
    own = make_entry("own")
    twin = replace(make_entry("twin", seed=0), masks=make_entry(seed=5).masks)  # own's prototypes, other masks
    stranger = make_entry("stranger", seed=7)
    same_masks = replace(make_entry("alike", seed=0), prototypes=None)
    other_masks = replace(make_entry("bare", seed=9), prototypes=None)
    found = nearest_relatives(own, [other_masks, stranger, own, same_masks, twin])
    assert [each.name.partition("--")[0] for each in found] == ["twin", "stranger", "alike", "bare"]
    assert found[0].similarity == pytest.approx(1)
    assert found[1].similarity == prototype_similarity(stranger.prototypes, own.prototypes), "as a source for `own`"
    assert found[2].similarity is None
    assert found[2].iou == 1
    assert found[2].iou > found[2].random_iou > 0
    assert nearest_relatives(own, [own]) == []
    assert nearest_relatives(own, [stranger, twin], k=1) == found[:1]


def test_similarities_are_of_one_measure() -> None:
    entries = [make_entry(name, seed=seed) for seed, name in enumerate("abc")]
    matrix, measure = similarities(entries)
    assert measure == "prototypes"
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)
    a, b = entries[0].prototypes, entries[1].prototypes
    assert matrix[0, 1] == (prototype_similarity(a, b) + prototype_similarity(b, a)) / 2
    other: ZooEntry = replace(entries[2], prototypes=None, facts={**entries[2].facts, "classes": ["b", "z"]})
    matrix, measure = similarities([*entries[:2], other])
    assert measure == "shared classes"
    assert matrix.tolist() == [[2, 2, 1], [2, 2, 1], [1, 1, 2]]


def test_entries_are_read_in_full_but_kept_without_their_weights(fill: Callable[..., ModelZoo]) -> None:
    zoo = fill("alpha", "beta")
    payload = bytearray((zoo.path / "tasks" / f"{zoo.names[0]}.safetensors").read_bytes())
    payload[-1] ^= 1
    (zoo.path / "tasks" / f"{zoo.names[0]}.safetensors").write_bytes(payload)
    (sound,), damaged = readable_entries(zoo, [*zoo.names, "gone--00000000"])
    assert (sound.name, sound.weights, list(sound.masks)) == (zoo.names[1], {}, ["stem", "block"])
    assert list(damaged) == [zoo.names[0]]
