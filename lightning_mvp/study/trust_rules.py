"""Rules that predict from LEEP whether a vote will beat pruning from scratch, fitted and tested on a study's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import expit

from lightning_mvp.study.results import Run, target_of
from lightning_mvp.voting.trust import Evidence, Rule

# The weight of the squared slopes in the logistic regression, whose features are standardised. It keeps the slopes
# finite where the vote almost always won or almost always lost.
PENALTY = 1.0


@dataclass(frozen=True)
class Case:
    """A target on which both the vote and pruning from scratch were run.

    Args:
        kind: the kind of target, which is the study's label.
        evidence: what LEEP said before anything was trained.
        difference: accuracy of the vote minus that of pruning from scratch.
    """

    kind: str
    evidence: Evidence
    difference: float

    @property
    def won(self) -> bool:
        return self.difference > 0


def cases(runs: Sequence[Run], rival: tuple[str, int]) -> list[Case]:
    """The targets with finished runs of both MVP, with its evidence, and the rival.

    MVP has the steps of its first run of each kind, as in :func:`~lightning_mvp.study.results.summarise`.

    Args:
        runs: on targets, as in ``results.jsonl``.
        rival: method and steps, for instance ``("taylor", 1000)``; without mimicking.
    """
    theirs = {
        _key(run): run["accuracy"]
        for run in runs
        if (run["method"], run["steps"]) == rival and not run.get("changes", {}).get("optim.mimic")
    }
    ours = [run for run in runs if run["method"] == "mvp"]
    first = {run.get("label", ""): run["steps"] for run in reversed(ours)}
    return [
        Case(run.get("label", ""), Evidence(**run["evidence"]), run["accuracy"] - theirs[_key(run)])
        for run in ours
        if "evidence" in run and _key(run) in theirs and run["steps"] == first[run.get("label", "")]
    ]


def _key(run: Run) -> tuple[object, ...]:
    return run.get("label", ""), run.get("pruning_ratio"), *target_of(run)


def _fit(found: Sequence[Case], features: Sequence[str]) -> np.ndarray:
    """Weights of a logistic regression, the intercept first; with no features the log-odds of the share of wins."""
    values, won = _values(found, features), np.array([case.won for case in found], dtype=float)
    mean, deviation = values.mean(0), values.std(0)
    deviation[deviation == 0] = 1.0
    scaled = np.column_stack([np.ones(len(values)), (values - mean) / deviation])

    def loss(weights: np.ndarray) -> float:
        logits = np.where(won > 0, 1, -1) * (scaled @ weights)
        # One more case that is half won keeps probabilities inside (0, 1) where the vote won or lost every time.
        prior = (np.logaddexp(0, weights[0]) + np.logaddexp(0, -weights[0])) / 2
        return float(np.logaddexp(0, -logits).sum() + prior + PENALTY / 2 * (weights[1:] ** 2).sum())

    weights = optimize.minimize(loss, np.zeros(scaled.shape[1])).x
    slopes = weights[1:] / deviation
    return np.concatenate([[weights[0] - slopes @ mean], slopes])


def _values(found: Sequence[Case], features: Sequence[str]) -> np.ndarray:
    return np.array([[getattr(case.evidence, name) for name in features] for case in found]).reshape(len(found), -1)


def fit(found: Sequence[Case], features: Sequence[str] = ("explained",)) -> Rule:
    r"""Logistic regression of winning on what LEEP explains; with no features the share of wins, whatever LEEP says.

    Maximises :math:`\sum_i \log P(won_i) - \frac{λ}{2} \lVert w \rVert^2` over weights w of standardised features,
    with λ = 1 and one more case that is half won.

    Example:
        >>> good, bad = (Evidence(-2 * (1 - share), 2.0, -2.0, 1.0) for share in (0.8, 0.2))
        >>> rule = fit([Case("", good, 0.1), Case("", bad, -0.1)] * 10)
        >>> rule.probability(good) > 0.8 > 0.2 > rule.probability(bad)
        True
    """
    return Rule(*(round(float(weight), 3) for weight in _fit(found, features)))


def left_out_predictions(found: Sequence[Case], features: Sequence[str] = ("explained",)) -> np.ndarray:
    """The probability of each case by a regression that was fitted without any case of its kind."""
    predictions = np.empty(len(found))
    for kind in {case.kind for case in found}:
        own = np.array([case.kind == kind for case in found])
        weights = _fit([case for case in found if case.kind != kind], features)
        predictions[own] = expit(weights[0] + _values(found, features)[own] @ weights[1:])
    return predictions


def believable(found: Sequence[Case]) -> Rule | None:
    """The rule by LEEP, or None where it does not predict kinds of target that it has not seen.

    It predicts them where the Brier score of its left-out predictions is below that of left-out shares of wins, and
    where a nearer task makes a win more likely: the other way round is chance. Where the vote always won, or always
    lost, there is nothing to tell.
    """
    won = [case.won for case in found]
    if len(set(won)) < 2:
        return None
    by_leep, by_share = (brier(left_out_predictions(found, features), won) for features in (("explained",), ()))
    rule = fit(found)
    return rule if by_leep < by_share and rule.explained > 0 else None


@dataclass(frozen=True)
class Bin:
    """Cases of like predictions: their mean, and how often the vote won, with Wilson's 95 % interval."""

    predicted: float
    observed: float
    low: float
    high: float
    cases: int


def calibration(predictions: Sequence[float] | np.ndarray, won: Sequence[bool]) -> list[Bin]:
    """Cases in four bins of about equal number, by their prediction.

    Example:
        >>> calibration([0.1, 0.2, 0.8, 0.9], [False, False, True, True])[-1].observed
        1.0
    """
    order = np.argsort(np.asarray(predictions), kind="stable")
    found = []
    for part in np.array_split(order, min(4, len(order))):
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
