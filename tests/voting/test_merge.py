from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mvp.backbones.masks import Masks, random_masks
from lightning_mvp.backbones.surgery import slice_state
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.voting.merge import merge

from .tiny import SIZES, tiny_groups, tiny_state

GROUPS = tiny_groups()
THETA0 = tiny_state(0)


def _mask(one: list[int], two: list[int]) -> Masks:
    return Masks({"one": torch.tensor(one) > 0, "two": torch.tensor(two) > 0})


@given(
    seed=st.integers(0, 500),
    ratio=st.floats(0.1, 0.9),
    weight=st.floats(1e-3, 1e3),
    full=st.booleans(),
    double=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_one_neighbour_gives_back_its_weights_bit_for_bit(seed, ratio, weight, full, double) -> None:
    dtype = torch.float64 if double else torch.float32
    masks, state = random_masks(SIZES, ratio, seed), tiny_state(seed, dtype)
    small = slice_state(state, GROUPS, masks)
    given_state = state if full else small
    result = merge({"x": given_state}, {"x": masks}, masks, GROUPS, {"x": weight}, theta0=tiny_state(0, dtype))
    assert fingerprint(result.state) == fingerprint(small)
    assert result.shares == {"0": 0.0, "1": 1.0, ">=2": 0.0}


@given(
    seeds=st.lists(st.integers(1, 500), min_size=2, max_size=5, unique=True),
    shuffle=st.randoms(use_true_random=False),
    missing=st.sampled_from(["theta0", "producer", "zero"]),
)
@settings(max_examples=40, deadline=None)
def test_order_and_cut_or_full_never_matter(seeds, shuffle, missing) -> None:
    states = {f"t{seed}": tiny_state(seed) for seed in seeds}
    masks = {f"t{seed}": random_masks(SIZES, 0.5, seed) for seed in seeds}
    weights = {f"t{seed}": 1 / seed for seed in seeds}
    target = random_masks(SIZES, 0.4, 9)
    first = merge(states, masks, target, GROUPS, weights, theta0=THETA0, missing=missing)
    names = list(states)
    shuffle.shuffle(names)
    cut = {name: slice_state(states[name], GROUPS, masks[name]) for name in names}
    again = merge(cut, {n: masks[n] for n in names}, target, GROUPS, weights, theta0=THETA0, missing=missing)
    assert fingerprint(again.state) == fingerprint(first.state)
    assert sum(first.shares.values()) == pytest.approx(1)


def test_every_entry_is_the_mean_of_those_that_kept_all_its_units() -> None:
    """Against the formula written as loops over entries, with other code than the implementation's."""
    masks = {f"t{seed}": random_masks(SIZES, 0.5, seed) for seed in (1, 2, 3)}
    states = {name: tiny_state(seed) for seed, name in enumerate(masks, start=1)}
    weights = {"t1": 0.2, "t2": 0.5, "t3": 0.3}
    target = Masks.full(SIZES)
    merged = merge(states, masks, target, GROUPS, weights, theta0=THETA0).state
    contributors = []
    for out in range(4):
        for into in range(5):
            having = [n for n in masks if masks[n]["two"][out] and masks[n]["one"][into]]
            contributors.append(len(having))
            total = sum(weights[n] for n in having)
            expected = sum(weights[n] * float(states[n]["conv2.weight"][out, into]) for n in having)
            expected = expected / total if having else float(THETA0["conv2.weight"][out, into])
            assert float(merged["conv2.weight"][out, into]) == pytest.approx(expected, rel=1e-6)
    assert {0, 1, 2} <= set(contributors), "the masks must make all cases occur"
    mean_bias = sum(weights[n] * states[n]["linear.bias"].double() for n in masks)
    assert torch.allclose(merged["linear.bias"].double(), mean_bias, rtol=1e-6)


def test_statistics_are_those_of_the_pooled_samples() -> None:
    rng = np.random.default_rng(0)
    samples = {"x": rng.normal(1, 2, (1000, 5)), "y": rng.normal(-3, 1, (1000, 5))}
    states = {}
    for name, sample in samples.items():
        mean, var = (torch.from_numpy(v.astype(np.float32)) for v in (sample.mean(0), sample.var(0)))
        states[name] = {**THETA0, "bn1.running_mean": mean, "bn1.running_var": var}
    full = Masks.full(SIZES)
    merged = merge(states, {"x": full, "y": full}, full, GROUPS, theta0=THETA0).state
    pooled = np.concatenate(list(samples.values()))
    np.testing.assert_allclose(merged["bn1.running_mean"], pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(merged["bn1.running_var"], pooled.var(0), rtol=1e-5)


def test_what_nobody_kept() -> None:
    masks = {"x": _mask([1, 1, 0, 0, 0], [1, 1, 0, 0]), "y": _mask([1, 0, 1, 0, 0], [1, 0, 0, 0])}
    states = {"x": tiny_state(1), "y": tiny_state(2)}
    target = _mask([0, 1, 0, 1, 0], [1, 1, 1, 0])
    theta0 = THETA0["conv2.weight"][:3, 3]  # input unit 3: kept by nobody; outputs 0, 1, 2: kept by 2, 1, 0

    def missing(rule: str) -> dict[str, torch.Tensor]:
        return merge(states, masks, target, GROUPS, theta0=THETA0, missing=rule).state  # type: ignore[arg-type]

    assert torch.equal(missing("theta0")["conv2.weight"][:, 1], theta0)
    assert torch.equal(missing("zero")["conv2.weight"][:, 1], torch.zeros(3))
    assert torch.allclose(missing("producer")["conv2.weight"][:, 1], theta0 / torch.tensor([3.0, 2.0, 1.0]))
    for rule in ("theta0", "producer", "zero"):
        state = missing(rule)
        assert state["conv2.weight"][0, 0] == states["x"]["conv2.weight"][0, 1], "what one kept is not touched"
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert state[f"bn1.{name}"][1] == THETA0[f"bn1.{name}"][3], "a unit's own tensors stay alive"


def test_shares_count_every_entry_once() -> None:
    masks = {"x": _mask([1, 1, 0, 0, 0], [1, 1, 0, 0]), "y": _mask([1, 0, 1, 0, 0], [1, 0, 0, 0])}
    state = {"conv2.weight": THETA0["conv2.weight"]}
    result = merge({"x": state, "y": state}, masks, _mask([1, 1, 0, 0, 0], [1, 1, 1, 0]), GROUPS, theta0=state)
    # entry (0, 0) by both; (0, 1), (1, 0), (1, 1) by x; row 2 by nobody
    assert result.shares == pytest.approx({"0": 2 / 6, "1": 3 / 6, ">=2": 1 / 6})


def test_a_neighbour_that_counts_nothing_is_left_out() -> None:
    masks = {"x": random_masks(SIZES, 0.5, 1), "y": random_masks(SIZES, 0.5, 2)}
    states = {"x": tiny_state(1), "y": tiny_state(2)}
    both = merge(states, masks, masks["x"], GROUPS, {"x": 0.5, "y": 0.0}, theta0=THETA0)
    assert fingerprint(both.state) == fingerprint(slice_state(states["x"], GROUPS, masks["x"]))


def test_bad_input_is_refused() -> None:
    masks = random_masks(SIZES, 0.5, 1)
    with pytest.raises(ValueError, match="`missing` to be one of"):
        merge({"x": THETA0}, {"x": masks}, masks, GROUPS, theta0=THETA0, missing="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one neighbour"):
        merge({}, {}, masks, GROUPS, theta0=THETA0)
    with pytest.raises(ValueError, match=r"'conv1.weight' of entry 'x'.*\(1, 1\)"):
        merge({"x": {**THETA0, "conv1.weight": torch.ones(1, 1)}}, {"x": masks}, masks, GROUPS, theta0=THETA0)
