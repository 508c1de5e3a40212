"""Can LEEP tell beforehand whether the vote will beat pruning from scratch? Fitted and checked on a study's targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from lightning_mvp.study.results import target_of
from lightning_mvp.voting.trust import Evidence, Rule

# Of the logistic regression, in units of the standardised features: with few losses it keeps weights finite.
PENALTY = 1.0


@dataclass(frozen=True)
class Case:
    """A target on which both were run.

    Args:
        kind: of target, the study's label.
        evidence: what LEEP said.
        difference: accuracy of the vote minus that of pruning from scratch.
    """

    kind: str
    evidence: Evidence
    difference: float

    @property
    def won(self) -> bool:
        return self.difference > 0


def cases(runs: Sequence[dict[str, Any]], rival: tuple[str, int]) -> list[Case]:
    """The targets of finished runs, those of MVP that know their evidence beside the rival's.

    Args:
        runs: on targets, as in ``results.jsonl``.
        rival: method and steps, for instance ``("taylor", 1000)``.
    """

    def key(run: dict[str, Any]) -> tuple[object, ...]:
        return run.get("label", ""), run["macs"], *target_of(run)

    theirs = {key(run): run["accuracy"] for run in runs if (run["method"], run["steps"]) == rival}
    ours = [run for run in runs if run["method"] == "mvp" and "evidence" in run and key(run) in theirs]
    fewest = min((run["steps"] for run in ours if run["steps"] > 0), default=0)
    return [
        Case(run.get("label", ""), Evidence(**run["evidence"]), run["accuracy"] - theirs[key(run)])
        for run in ours
        if run["steps"] == fewest
    ]


def _features(found: Sequence[Case]) -> np.ndarray:
    return np.array([[case.evidence.explained, case.evidence.lead] for case in found])


def fit(found: Sequence[Case]) -> Rule:
    r"""Logistic regression of winning on what LEEP explains and by how much the nearest entry leads.

    Maximises :math:`\sum_i \log P(won_i) - \frac{λ}{2} \lVert w \rVert^2` over weights w of standardised features,
    with λ = 1.

    Example:
        >>> good, bad = (Evidence(-2 * (1 - share), 2.0, -2.0, 1.0) for share in (0.8, 0.2))
        >>> rule = fit([Case("", good, 0.1), Case("", bad, -0.1)] * 10)
        >>> rule.probability(good) > 0.9 > 0.1 > rule.probability(bad)
        True
    """
    features, won = _features(found), np.array([case.won for case in found], dtype=float)
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation == 0] = 1.0
    scaled = np.column_stack([np.ones(len(features)), (features - mean) / deviation])

    def loss(weights: np.ndarray) -> float:
        logits = scaled @ weights
        return float(
            np.logaddexp(0, -np.where(won > 0, logits, -logits)).sum() + PENALTY / 2 * (weights[1:] ** 2).sum()
        )

    weights = optimize.minimize(loss, np.zeros(3)).x
    slopes = weights[1:] / deviation
    return Rule(round(float(weights[0] - slopes @ mean), 4), *(round(float(slope), 4) for slope in slopes))


def left_out_predictions(found: Sequence[Case]) -> np.ndarray:
    """The probability of each case by a rule that was fitted without any case of its kind."""
    predictions = np.empty(len(found))
    for kind in {case.kind for case in found}:
        rule = fit([case for case in found if case.kind != kind])
        for index, case in enumerate(found):
            if case.kind == kind:
                predictions[index] = rule.probability(case.evidence)
    return predictions


@dataclass(frozen=True)
class Bin:
    """Cases of like predictions: their mean, and how often the vote won, with Wilson's 95 % interval."""

    predicted: float
    observed: float
    low: float
    high: float
    cases: int


def calibration(predictions: Sequence[float] | np.ndarray, won: Sequence[bool], bins: int = 4) -> list[Bin]:
    """Cases in bins of about equal number, by their prediction.

    Example:
        >>> calibration([0.1, 0.2, 0.8, 0.9], [False, False, True, True], bins=2)[1].observed
        1.0
    """
    order = np.argsort(np.asarray(predictions), kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        wins = int(sum(won[index] for index in part))
        interval = stats.binomtest(wins, len(part)).proportion_ci(method="wilson")
        mean = float(np.mean([predictions[index] for index in part]))
        found.append(Bin(mean, wins / len(part), interval.low, interval.high, len(part)))
    return found


def brier(predictions: Sequence[float] | np.ndarray, won: Sequence[bool]) -> float:
    """Mean squared error of probabilities; always saying the base rate p gives p (1 − p).

    Example:
        >>> brier([0.5, 0.5], [True, False])
        0.25
    """
    return float(np.mean((np.asarray(predictions) - np.asarray(won, dtype=float)) ** 2))
