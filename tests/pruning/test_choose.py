from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_mvp.backbones import Masks, widths
from lightning_mvp.pruning import choose_masks, top_units


class ProductCost:
    """A chain of layers: what a group costs depends on the width before it, as in a real network."""

    def parameters(self, masks: Masks) -> int:
        kept = [3, *masks.kept.values(), 2]
        return sum(before * after for before, after in itertools.pairwise(kept))

    def macs(self, masks: Masks) -> int:
        return sum(kept * 7**place for place, kept in enumerate(masks.kept.values()))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], Masks]:
    """Scores with ties, and masks that have lost some units already."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    scores, masks = {}, {}
    for place, size in enumerate(sizes):
        values = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
        alive = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        alive[draw(st.integers(0, size - 1))] = True
        scores[f"g{place}"], masks[f"g{place}"] = torch.tensor(values, dtype=torch.float32), torch.tensor(alive)
    return scores, Masks(masks)


def is_subset(masks: Masks, of: Masks) -> bool:
    return all(not (mask & ~of[name]).any() for name, mask in masks.items())


FRACTIONS = st.floats(0.05, 1)
FLOORS = st.integers(1, 3)


@given(problems(), FRACTIONS, FLOORS)
def test_layer_scope_gives_exact_widths_out_of_the_units_still_there(problem: Any, fraction: float, floor: int):
    scores, current = problem
    masks = choose_masks(scores, current, fraction, floor=floor)
    wanted = widths(current.sizes, fraction, floor)
    assert is_subset(masks, current)
    assert masks.kept == {name: min(wanted[name], current.kept[name]) for name in wanted}


@given(problems(), FRACTIONS, st.sampled_from(["layer", "global"]))
def test_no_removed_unit_of_a_group_outscores_a_kept_one(problem: Any, fraction: float, scope: Any):
    scores, current = problem
    assume(scope == "layer" or fraction * sum(current.sizes.values()) >= len(current))
    masks = choose_masks(scores, current, fraction, scope=scope)
    for name, mask in masks.items():
        removed = current[name] & ~mask
        if removed.any():
            assert scores[name][mask].min() >= scores[name][removed].max()


@given(problems(), FRACTIONS, FLOORS)
def test_global_scope_removes_exactly_as_many_units_as_asked(problem: Any, fraction: float, floor: int):
    scores, current = problem
    least = sum(min(floor, kept) for kept in current.kept.values())
    target = int(fraction * sum(current.sizes.values()) + 0.5)
    assume(target >= least)
    masks = choose_masks(scores, current, fraction, scope="global", floor=floor)
    assert is_subset(masks, current)
    assert sum(masks.kept.values()) == min(target, sum(current.kept.values()))
    assert all(kept >= min(floor, current.kept[name]) for name, kept in masks.kept.items())


@given(problems(), FRACTIONS, st.sampled_from(["params", "macs"]), st.sampled_from(["layer", "global"]))
def test_a_cost_target_is_met_from_below_as_near_as_whole_units_allow(
    problem: Any, fraction: float, ratio_of: Any, scope: Any
):
    scores, current = problem
    cost = ProductCost()
    count = cost.parameters if ratio_of == "params" else cost.macs
    target = fraction * count(Masks.full(current.sizes))
    fewest = top_units(scores, dict.fromkeys(scores, 1), current)
    arguments: dict[str, Any] = {"scope": scope, "ratio_of": ratio_of, "cost": cost}
    if count(fewest) > target:
        with pytest.raises(ValueError, match="out of reach"):
            choose_masks(scores, current, fraction, **arguments)
        return
    masks = choose_masks(scores, current, fraction, **arguments)
    assert is_subset(masks, current)
    assert count(masks) <= target
    # Nothing bigger that the scope allows would do.
    if scope == "layer":
        steps = [(k - 0.5) / size for size in current.sizes.values() for k in range(1, size + 1)]
        rivals = [top_units(scores, widths(current.sizes, step), current) for step in [1.0, *steps]]
        assert count(masks) == max(count(rival) for rival in [*rivals, fewest] if count(rival) <= target)
    elif masks != current:
        means = {name: scores[name].double()[mask].mean() for name, mask in current.items()}
        removed = [
            (float(scores[name][unit] / means[name]) if means[name] > 0 else 0.0, name, -unit)
            for name, mask in masks.items()
            for unit in torch.where(current[name] & ~mask)[0].tolist()
        ]
        _, name, unit = max(removed)
        one_more = {**masks, name: masks[name].clone()}
        one_more[name][-unit] = True
        assert count(Masks(one_more)) > target


def test_equal_scores_go_to_the_lower_index_and_the_dead_stay_dead():
    current = Masks({"a": torch.tensor([False, True, True, True])})
    assert top_units({"a": torch.tensor([9.0, 1.0, 1.0, 1.0])}, {"a": 2}, current)["a"].tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_global_scope_ranks_scores_relative_to_their_group():
    scores = {"loud": torch.tensor([100.0, 300.0]), "quiet": torch.tensor([0.1, 1.9])}
    masks = choose_masks(scores, Masks.full({"loud": 2, "quiet": 2}), 0.75, scope="global")
    assert masks.kept == {"loud": 2, "quiet": 1}  # 0.1 of its mean, against 0.5


@pytest.mark.parametrize(
    ("argument", "value"), [("scope", "local"), ("ratio_of", "flops"), ("kept_fraction", 0.0), ("floor", 0)]
)
def test_unknown_choices_are_refused(argument: str, value: Any):
    arguments: dict[str, Any] = {"kept_fraction": 0.5, argument: value}
    with pytest.raises(ValueError, match=f"`{argument}`"):
        choose_masks({"a": torch.ones(3)}, Masks.full({"a": 3}), **arguments)


def test_a_cost_is_needed_for_ratios_of_cost():
    with pytest.raises(ValueError, match="`cost`"):
        choose_masks({"a": torch.ones(3)}, Masks.full({"a": 3}), 0.5, ratio_of="macs")
