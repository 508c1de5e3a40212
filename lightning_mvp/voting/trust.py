"""Whether a vote will beat pruning from scratch, by what LEEP says before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evidence:
    """What a zoo knows of a new task.

    Args:
        leep: LEEP of the nearest entry, at most 0.
        label_entropy: H(y) of the task's labels in nats. LEEP of a source whose predictions say nothing is −H(y).
        mean: mean of LEEP over the zoo's entries; None where not all were scored.
        spread: standard deviation of LEEP over the zoo's entries; None where not all were scored.
    """

    leep: float
    label_entropy: float
    mean: float | None
    spread: float | None

    @classmethod
    def of(cls, scores: Sequence[float], label_entropy: float, whole: bool = True) -> Evidence:
        """The evidence in the LEEP of all entries, or (`whole` is false) of the most promising ones only.

        Example:
            >>> Evidence.of([-0.5, -1.5], 2.0)
            Evidence(leep=-0.5, label_entropy=2.0, mean=-1.0, spread=0.5)
        """
        mean, spread = (float(np.mean(scores)), float(np.std(scores))) if whole else (None, None)
        return cls(max(scores), label_entropy, mean, spread)

    @property
    def explained(self) -> float:
        r"""The share of the labels' entropy that the nearest entry explains, :math:`1 + \mathrm{LEEP} / H(y)`, 0 to 1.

        Example:
            >>> Evidence.of([-0.5, -1.5], 2.0).explained
            0.75
        """
        return 1 + self.leep / self.label_entropy

    @property
    def lead(self) -> float | None:
        """How many standard deviations the nearest entry's LEEP is above the zoo's mean.

        It is 0 where all entries have the same LEEP, and None where not all were scored.

        Example:
            >>> Evidence.of([-0.5, -1.5], 2.0).lead
            1.0
        """
        if self.mean is None or self.spread is None:
            return None
        return (self.leep - self.mean) / self.spread if self.spread > 0 else 0.0


@dataclass(frozen=True)
class Rule:
    """A logistic rule for whether the vote beats a rival: log-odds = intercept + slope · explained.

    Args:
        intercept: the log-odds where LEEP explains nothing.
        explained: the slope of the log-odds in :attr:`Evidence.explained`.
    """

    intercept: float
    explained: float = 0.0

    def probability(self, evidence: Evidence) -> float:
        """The probability that the vote will be better than the rival.

        Example:
            >>> Rule(0.0).probability(Evidence.of([-0.5, -1.5], 2.0))
            0.5
        """
        return float(1 / (1 + np.exp(-self.intercept - self.explained * evidence.explained)))


# One rule for each rival of which LEEP tells anything: iterative Taylor pruning from scratch in so many times the
# vote's steps. They were fitted on the targets of all studies in benchmarks/cifar100, with votes of 100 steps of 32
# images, but for the first study of EfficientNet, whose iterative Taylor had too low a rate. tests/test_readme.py
# computes them again.
RULES = {1: Rule(-1.817, 13.451)}


def expectations(evidence: Evidence, steps: int) -> list[str]:
    """What the study's rules expect of a vote with so many steps, in sentences. Nothing where LEEP tells nothing.

    Example:
        >>> expectations(Evidence.of([-0.5, -1.5], 2.0), 100)[-1]
        '  almost all votes (100%) are better than pruning from scratch in 100 steps.'
    """
    if not RULES:
        return []
    sentences = [f"{nearest_words(evidence)} By what was found with votes of 100 steps, of such tasks"]
    for times, rule in RULES.items():
        chance = rule.probability(evidence)
        sentences.append(
            f"  {_share(chance)} votes ({chance:.0%}) are better than pruning from scratch in {times * steps:,} steps."
        )
    return sentences


def nearest_words(evidence: Evidence) -> str:
    """What the evidence says of the nearest task, in a sentence.

    Example:
        >>> nearest_words(Evidence.of([-0.5, -1.5], 2.0, whole=False))
        "The nearest task explains 75% of the labels' entropy."
    """
    lead = evidence.lead
    stands = "" if lead is None else f" and stands {lead:.1f} standard deviations above the zoo's mean"
    return f"The nearest task explains {evidence.explained:.0%} of the labels' entropy{stands}."


def _share(chance: float) -> str:
    for least, words in ((0.9, "almost all"), (0.65, "most"), (0.35, "about half of the"), (0.1, "few")):
        if chance >= least:
            return words
    return "hardly any"
