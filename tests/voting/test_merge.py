from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mvp.backbones.masks import Masks, random_masks
from lightning_mvp.backbones.surgery import slice_state
from lightning_mvp.backbones.units import Groups, Member, UnitGroup
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.voting.merge import merge

from .tiny import SIZES, tiny_groups, tiny_state

GROUPS = tiny_groups()
THETA0 = tiny_state(0)
SHAPES = {
    "grouped.weight": (6, 2, 3, 3),
    "norm.weight": (6,),
    "norm.running_mean": (6,),
    "norm.running_var": (6,),
    "norm.num_batches_tracked": (),
    "joined.weight": (3, 10, 1, 1),
    "read.weight": (5, 3),
    "alone.weight": (2, 3),
}


def _mask(one: list[int], two: list[int]) -> Masks:
    return Masks({"one": torch.tensor(one) > 0, "two": torch.tensor(two) > 0})


def _grouped() -> Groups:
    """Units of two channels each, two groups joined along one axis, and a tensor read along its second axis only."""
    three, pairs, four = np.arange(3)[:, None], np.arange(6).reshape(3, 2), np.arange(6, 10)[:, None]
    norm = [Member(f"norm.{name}", 0, pairs, "norm") for name in ("weight", "running_mean", "running_var")]
    return Groups(
        [
            UnitGroup(
                "pairs",
                "conv",
                3,
                (Member("grouped.weight", 0, pairs, "producer"), *norm, Member("joined.weight", 1, pairs, "consumer")),
            ),
            UnitGroup("four", "conv", 4, (Member("joined.weight", 1, four, "consumer"),)),
            UnitGroup(
                "out",
                "conv",
                3,
                (Member("joined.weight", 0, three, "producer"), Member("read.weight", 1, three, "consumer")),
            ),
        ]
    )


def _random_state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state["norm.running_var"] = state["norm.running_var"].exp()
    return {**state, "norm.num_batches_tracked": torch.tensor(7 * seed + 1)}


def _entry_by_entry(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    masks: Mapping[str, Masks],
    target: Masks,
    groups: Groups,
    coefficients: Mapping[str, float],
    theta0: Mapping[str, torch.Tensor],
    missing: str,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The merge in loops over single entries of the full tensors, and how many neighbours each entry came from."""
    names = [name for name in states if coefficients[name] > 0]
    average = sum(coefficients[name] for name in names) / len(names)
    merged, counts = {}, []
    for tensor, dense in theta0.items():
        kept = groups.kept(tensor, dense.shape, target)
        axes = [range(n) if k is None else k.tolist() for n, k in zip(dense.shape, kept, strict=True)]
        alive = {}
        for name in names:
            own = groups.kept(tensor, dense.shape, masks[name])
            alive[name] = [
                set(range(n)) if k is None else set(k.tolist()) for n, k in zip(dense.shape, own, strict=True)
            ]
        values = []
        for place in product(*axes):
            having = [n for n in names if all(i in axis for i, axis in zip(place, alive[n], strict=True))]
            counts.append(len(having))
            if having:
                a = np.array([coefficients[name] for name in having])
                w = np.array([states[name][tensor][place].item() for name in having])
                if tensor.endswith("running_var"):
                    means = np.array([states[name]["norm.running_mean"][place].item() for name in having])
                    w = w + (means - (a * means).sum() / a.sum()) ** 2
                values.append((a * w).sum() / a.sum())
            elif missing == "theta0" or len(place) == 1:
                values.append(dense[place].item())
            elif missing == "zero":
                values.append(0.0)
            else:
                produced = sum(coefficients[n] for n in names if place[0] in alive[n][0]) / average
                values.append(dense[place].item() / (1 + produced))
        merged[tensor] = np.array(values).reshape([len(axis) for axis in axes])
    return merged, counts


@given(
    seed=st.integers(0, 10_000),
    missing=st.sampled_from(["theta0", "producer", "zero"]),
    weights=st.lists(st.floats(1e-3, 1e3) | st.just(0.0), min_size=1, max_size=5).filter(any),
    full=st.lists(st.booleans(), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_grouped_joined_and_unitless_tensors_are_merged_entry_by_entry(seed, missing, weights, full) -> None:
    groups, theta0 = _grouped(), _random_state(seed)
    coefficients = {f"t{i}": weight for i, weight in enumerate(weights)}
    states = {name: _random_state(seed + 1 + i) for i, name in enumerate(coefficients)}
    masks = {name: random_masks(groups, 0.5, seed + i) for i, name in enumerate(coefficients)}
    target = random_masks(groups, 0.3, seed + 99)
    read = {
        name: states[name] if whole else slice_state(states[name], groups, masks[name])
        for name, whole in zip(states, full, strict=False)
    }
    result = merge(read, masks, target, groups, coefficients, theta0=theta0, missing=missing)
    expected, counts = _entry_by_entry(states, masks, target, groups, coefficients, theta0, missing)
    assert list(result.state) == list(theta0)
    for tensor, values in expected.items():
        assert result.state[tensor].dtype == theta0[tensor].dtype
        # A counter is rounded, and a mean that lies half-way may be rounded either way.
        close = {"rtol": 0, "atol": 0.5 + 1e-9} if tensor.endswith("tracked") else {"rtol": 1e-6, "atol": 1e-7}
        np.testing.assert_allclose(result.state[tensor].numpy(), values, err_msg=tensor, **close)
    shares = np.bincount(np.minimum(counts, 2), minlength=3) / len(counts)
    assert list(result.shares.values()) == pytest.approx(shares.tolist())


@given(
    seed=st.integers(0, 500),
    weights=st.lists(st.floats(1e-3, 1e3) | st.just(5e-324), min_size=2, max_size=7).filter(lambda w: max(w) > 1e-4),
)
@settings(max_examples=40, deadline=None)
def test_equal_neighbours_and_entries_of_one_neighbour_are_exact_in_float32(seed, weights) -> None:
    names = {f"t{i}": weight for i, weight in enumerate(weights)}
    state = tiny_state(seed)
    state["bn1.running_var"][:2] = 0  # a dead unit has no variance, and its mean must not give it one
    masks = {name: random_masks(SIZES, 0.5, seed + i) for i, name in enumerate(names)}
    target = masks["t0"]
    result = merge(dict.fromkeys(names, state), masks, target, GROUPS, names, theta0=state)
    assert fingerprint(result.state) == fingerprint(slice_state(state, GROUPS, target))


def test_what_a_neighbour_lacks_never_gets_into_the_mean() -> None:
    """Not even if it is infinite: full tensors hold anything in the places of removed units."""
    masks = {"x": _mask([1, 1, 0, 1, 0], [1, 1, 0, 0]), "y": _mask([1, 0, 1, 0, 1], [0, 1, 1, 1])}
    states = {"x": tiny_state(1), "y": tiny_state(2)}
    clean = merge(states, masks, Masks.full(SIZES), GROUPS, theta0=THETA0)
    for name, state in states.items():
        for tensor, value in state.items():
            for axis, kept in enumerate(GROUPS.kept(tensor, value.shape, masks[name])):
                if kept is not None:
                    value.index_fill_(
                        axis, torch.from_numpy(np.setdiff1d(np.arange(value.shape[axis]), kept)), torch.inf
                    )
    assert fingerprint(merge(states, masks, Masks.full(SIZES), GROUPS, theta0=THETA0).state) == fingerprint(clean.state)


def test_read_only_arrays_and_any_strides_are_read() -> None:
    masks = {f"t{seed}": random_masks(SIZES, 0.5, seed) for seed in (1, 2)}
    states = {name: tiny_state(seed) for seed, name in enumerate(masks, start=1)}
    arrays = {name: {tensor: value.numpy().T for tensor, value in state.items()} for name, state in states.items()}
    for state in arrays.values():
        for tensor, value in state.items():
            state[tensor] = value[..., ::-1].copy()[..., ::-1].T if value.ndim else value
            state[tensor].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = merge(arrays, masks, masks["t1"], GROUPS, theta0=arrays["t2"]).state
    expected = merge(states, masks, masks["t1"], GROUPS, theta0=states["t2"]).state
    assert fingerprint(read) == fingerprint(expected)


def test_inputs_are_not_changed() -> None:
    masks = {f"t{seed}": random_masks(SIZES, 0.5, seed) for seed in (1, 2)}
    states = {name: tiny_state(seed, torch.float64) for seed, name in enumerate(masks, start=1)}
    theta0 = tiny_state(0, torch.float64)
    before = [fingerprint(state) for state in (*states.values(), theta0)]
    merge(states, masks, Masks.full(SIZES), GROUPS, {"t1": 0.3, "t2": 0.7}, theta0=theta0)
    assert [fingerprint(state) for state in (*states.values(), theta0)] == before


def test_the_number_of_threads_changes_nothing() -> None:
    """With tensors that are large enough (2¹⁵ entries) for torch to share them out."""
    rows, columns = np.arange(160)[:, None], np.arange(90)[:, None]
    groups = Groups(
        [
            UnitGroup("rows", "conv", 160, (Member("weight", 0, rows, "producer"),)),
            UnitGroup("columns", "conv", 90, (Member("weight", 1, columns, "consumer"),)),
        ]
    )
    masks = {f"t{seed}": random_masks(groups, 0.3, seed) for seed in range(3)}
    states = {
        name: {
            "weight": torch.randn(160, 90, 3, 3, generator=torch.Generator().manual_seed(seed)),
            "free": torch.randn(33_333, generator=torch.Generator().manual_seed(seed)),
        }
        for seed, name in enumerate(masks)
    }
    threads, results = torch.get_num_threads(), set()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            merged = merge(
                states, masks, Masks.full(groups), groups, {"t0": 0.1, "t1": 0.7, "t2": 0.3}, theta0=states["t0"]
            )
            results.add(fingerprint(merged.state))
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1


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
