"""The rule that says beforehand whether a vote will win is fitted on other kinds of target than it is checked on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_mvp.study.trust_rules import Case, believable, brier, calibration, cases, fit, left_out_predictions
from lightning_mvp.voting.trust import Evidence


def run_on(method: str, steps: int, accuracy: float, label: str = "seen", **more: Any) -> dict[str, Any]:
    run = {"task": "target-000", "draw": 0, "macs": 1, "label": label, "method": method, "steps": steps}
    evidence = {"leep": -1.0, "label_entropy": 2.0, "mean": -1.5, "spread": 0.25}
    return {**run, "accuracy": accuracy, **({"evidence": evidence} if method == "mvp" else {}), **more}


def test_cases_pair_a_votes_first_budget_with_the_rival_on_the_same_target() -> None:
    runs = [
        run_on("mvp", 100, 0.7),
        run_on("mvp", 300, 0.9),
        run_on("mvp", 10, 0.1),
        run_on("taylor", 100, 0.6),
        run_on("taylor", 1000, 0.75),
        run_on("mvp", 100, 0.8, label="other"),
        run_on("taylor", 1000, 0.5, label="elsewhere"),
    ]
    (case,) = cases(runs, ("taylor", 1000))
    assert case.difference == pytest.approx(-0.05)
    assert not case.won
    assert case.evidence.explained == 0.5
    assert case.evidence.lead == 2.0
    assert [case.won for case in cases(runs, ("taylor", 100))] == [True]


def many(seed: int, kinds: int = 3, each: int = 40) -> list[Case]:
    """The more is explained, the likelier the win; the lead says nothing."""
    draw = np.random.default_rng(seed)
    found = []
    for kind in range(kinds):
        for _ in range(each):
            share = draw.uniform(0.1, 0.9)
            evidence = Evidence(-2 * (1 - share), 2.0, -2.0 * (1 - share) - draw.uniform(0, 2), 1.0)
            found.append(
                Case(str(kind), evidence, 1.0 if draw.uniform() < 1 / (1 + np.exp(-8 * (share - 0.5))) else -1.0)
            )
    return found


def test_the_rule_finds_what_matters_and_its_predictions_are_calibrated() -> None:
    found = many(0)
    rule = fit(found)
    assert 5 < rule.explained < 11
    assert believable(found) == rule
    predictions, won = left_out_predictions(found), [case.won for case in found]
    rate = np.mean(won)
    assert brier(predictions, won) < 0.8 * rate * (1 - rate)
    bins = calibration(predictions, won)
    assert [each.cases for each in bins] == [30] * 4
    assert sum(each.low <= each.predicted <= each.high for each in bins) >= 3
    observed = [each.observed for each in bins]
    assert observed == sorted(observed)


def test_a_kind_of_target_is_predicted_by_a_rule_that_has_not_seen_it() -> None:
    found = many(1)
    before = left_out_predictions(found)
    turned = [Case(case.kind, case.evidence, -case.difference) if case.kind == "0" else case for case in found]
    after = left_out_predictions(turned)
    own = np.array([case.kind == "0" for case in found])
    assert np.array_equal(before[own], after[own])
    assert not np.allclose(before[~own], after[~own])


def test_where_leep_says_nothing_of_other_kinds_nothing_is_said() -> None:
    found = many(3)
    turned = [Case(case.kind, case.evidence, -case.difference) if case.kind != "0" else case for case in found]
    assert believable(turned) is None
    rate = np.mean([case.won for case in turned])
    assert fit(turned, ()).probability(turned[0].evidence) == pytest.approx(rate, abs=0.02)


def test_where_the_vote_always_wins_the_rule_says_so_with_finite_weights() -> None:
    found = [Case(case.kind, case.evidence, 1.0) for case in many(2, each=10)]
    assert all(0.9 < fit(found).probability(case.evidence) < 1 for case in found)
