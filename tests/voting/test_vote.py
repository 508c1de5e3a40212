from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mvp.backbones.masks import Masks, random_masks
from lightning_mvp.voting.vote import coefficients, vote, vote_widths

SIZES = {"a": 7, "b": 12}


def _masks(rows: dict[str, list[int]]) -> dict[str, Masks]:
    return {name: Masks({"a": torch.tensor(row) > 0}) for name, row in rows.items()}


@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True),
    ratio=st.floats(0.05, 0.95),
    shuffle=st.randoms(use_true_random=False),
    weighted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_widths_are_exact_and_the_order_of_the_zoo_never_matters(seeds, ratio, shuffle, weighted) -> None:
    masks = {f"task-{seed}": random_masks(SIZES, 0.5, seed) for seed in seeds}
    scores = {name: -float(index) / 7 for index, name in enumerate(masks)}
    importance = {
        name: {group: torch.rand(size, generator=torch.Generator().manual_seed(seed)) for group, size in SIZES.items()}
        for seed, name in zip(seeds, masks, strict=True)
    }
    widths = vote_widths(masks, ratio)
    temperature = 0.3 if weighted else None
    chosen = vote(masks, widths, coefficients(scores, temperature), importance)
    assert chosen.kept == widths

    names = list(masks)
    shuffle.shuffle(names)
    again = {name: masks[name] for name in names}
    weights = coefficients({name: scores[name] for name in names}, temperature)
    assert vote(again, vote_widths(again, ratio), weights, {name: importance[name] for name in names}) == chosen
    assert chosen.iou(chosen) == {"a": 1.0, "b": 1.0}


@given(seed=st.integers(0, 1000), ratio=st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_one_neighbour_is_outvoted_by_nobody(seed, ratio) -> None:
    alone = {"x": random_masks(SIZES, ratio, seed)}
    assert vote(alone, vote_widths(alone)) == alone["x"]


def test_fill_order_is_votes_importance_magnitude_index() -> None:
    masks = _masks({"x": [1, 1, 0, 0, 0, 0], "y": [1, 0, 1, 0, 0, 0]})
    importance = {"x": {"a": torch.tensor([0, 0, 5, 1, 1, 1.0])}, "y": {"a": torch.tensor([0, 0, 5, 1, 1, 1.0])}}
    magnitude = {"a": torch.tensor([9, 9, 1, 1, 2, 1.0])}
    chosen = [vote(masks, {"a": width}, None, importance, magnitude)["a"].nonzero().ravel() for width in range(1, 7)]
    order = [(set(more.tolist()) - set(less.tolist())).pop() for less, more in pairwise(chosen)]
    assert [chosen[0].item(), *order] == [0, 2, 1, 4, 3, 5]


def test_ballots_by_importance_let_one_sure_neighbour_outvote_two() -> None:
    masks = _masks({"x": [1, 0, 0], "y": [0, 1, 0], "z": [0, 1, 0]})
    importance = {"x": {"a": torch.tensor([9.0, 0, 0])}, "y": {"a": torch.tensor([0, 1.0, 0])}}
    importance["z"] = importance["y"]
    assert vote(masks, {"a": 1}, importance=importance)["a"].tolist() == [False, True, False]
    assert vote(masks, {"a": 1}, importance=importance, ballots="importance")["a"].tolist() == [True, False, False]
    # A score that a unit had before it was removed is no vote for it.
    masks["x"], importance["x"] = Masks({"a": torch.tensor([False, False, True])}), {"a": torch.tensor([99.0, 0, 1.5])}
    assert vote(masks, {"a": 1}, importance=importance, ballots="importance")["a"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="`ballots` to be one of 'masks', 'importance'"):
        vote(masks, {"a": 1}, ballots="secret")  # type: ignore[arg-type]


def test_coefficients_can_turn_a_vote() -> None:
    masks = _masks({"x": [1, 0, 0], "y": [0, 0, 1], "z": [0, 0, 1]})
    assert vote(masks, {"a": 1})["a"].tolist() == [False, False, True]
    assert vote(masks, {"a": 1}, {"x": 0.6, "y": 0.2, "z": 0.2})["a"].tolist() == [True, False, False]


def test_entries_without_importance_do_not_dilute_the_mean() -> None:
    masks = _masks({"x": [1, 1, 1], "y": [1, 1, 1]})
    assert vote(masks, {"a": 1}, importance={"x": {}, "y": {"a": torch.tensor([0.0, 2.0, 1.0])}})["a"].tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("kept", "width"), [((2, 3), 3), ((1, 1, 2), 1), ((1, 2, 2), 2), ((4, 4), 4)])
def test_mean_widths_round_half_up(kept: tuple[int, ...], width: int) -> None:
    masks = _masks({str(index): [1] * n + [0] * (5 - n) for index, n in enumerate(kept)})
    assert vote_widths(masks) == {"a": width}


def test_softmax_coefficients() -> None:
    weights = coefficients({"x": -1.0, "y": -1.5, "z": -900.0}, temperature=0.5)
    assert weights["x"] / weights["y"] == pytest.approx(2.718281828459045)
    assert sum(weights.values()) == pytest.approx(1)
    assert coefficients({"x": -1.0, "y": -2.0}) == {"x": 1.0, "y": 1.0}


def test_bad_input_is_refused() -> None:
    masks = _masks({"x": [1, 0, 0]})
    with pytest.raises(ValueError, match="at least one neighbour"):
        vote({}, {"a": 1})
    with pytest.raises(ValueError, match="1 to 3 for group 'a', but got 4"):
        vote(masks, {"a": 4})
    with pytest.raises(ValueError, match="'y' and 'x' differ"):
        vote({**masks, "y": Masks({"a": torch.ones(4, dtype=torch.bool)})}, {"a": 1})
    with pytest.raises(ValueError, match=r"`pruning_ratio` to be a float in \(0, 1\), but got 1.2"):
        vote_widths(masks, 1.2)
    with pytest.raises(ValueError, match="`temperature`"):
        coefficients({"x": -1.0}, 0.0)
    with pytest.raises(ValueError, match="finite"):
        coefficients({"x": float("nan")})
