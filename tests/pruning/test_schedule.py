from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mvp.backbones import widths
from lightning_mvp.pruning import Schedule

SCHEDULES = st.builds(
    Schedule,
    pruning_ratio=st.floats(0.01, 0.99),
    rounds=st.integers(1, 12),
    steps_per_round=st.integers(1, 20),
    warmup_steps=st.integers(0, 30),
    power=st.floats(0.25, 4),
)


@given(SCHEDULES)
def test_every_round_happens_once_and_in_order(schedule: Schedule):
    due = [schedule.rounds_due(step) for step in range(schedule.last_step + 40)]
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(due))
    for round_ in range(1, schedule.rounds + 1):
        assert due[schedule.step_of(round_) - 1 :][:2] == [round_ - 1, round_]
    assert due[-1] == schedule.rounds


@given(SCHEDULES)
def test_the_kept_fraction_falls_from_one_to_what_is_asked(schedule: Schedule):
    fractions = [schedule.kept_fraction(round_) for round_ in range(schedule.rounds + 1)]
    assert fractions[0] == 1
    assert fractions[-1] == pytest.approx(1 - schedule.pruning_ratio)
    assert all(later < earlier for earlier, later in itertools.pairwise(fractions))


def test_with_power_one_every_round_removes_the_same_share_of_what_is_left():
    schedule = Schedule(0.875, rounds=3, steps_per_round=4, warmup_steps=5)
    assert [schedule.kept_fraction(round_) for round_ in range(4)] == pytest.approx([1, 0.5, 0.25, 0.125])
    assert [schedule.step_of(round_) for round_ in (1, 2, 3)] == [9, 13, 17]
    assert [widths({"a": 10}, schedule.kept_fraction(round_))["a"] for round_ in (1, 2, 3)] == [5, 3, 1]


def test_a_higher_power_removes_less_at_first():
    assert Schedule(0.8, rounds=4, power=2).kept_fraction(1) > Schedule(0.8, rounds=4).kept_fraction(1)


@pytest.mark.parametrize("ratio", [0, 1, 1.2, -0.1, 80, True, "0.5", float("nan"), None])
def test_a_ratio_outside_zero_and_one_is_refused(ratio: object):
    with pytest.raises(ValueError, match="`pruning_ratio` to be a float in"):
        Schedule(ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("rounds", 0), ("rounds", 2.0), ("rounds", True), ("steps_per_round", 0), ("warmup_steps", -1), ("power", 0.0)],
)
def test_other_arguments_out_of_range_are_refused_by_name(argument: str, value: object):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        Schedule(0.5, **{argument: value})  # type: ignore[arg-type]
