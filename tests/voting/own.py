"""A similarity and a merge as users write them, in a module that can be imported."""

from __future__ import annotations

from torch import Tensor

from lightning_mvp.voting import Merge, Similarity, TargetData
from lightning_mvp.zoo import ZooEntry


class Alphabetical(Similarity):
    """Entries whose names come later are nearer."""

    needs_labels = False

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        return self.factor * sorted(target.names).index(entry.name)


class Forgetful(Similarity):
    """It does not keep what it was made with."""

    def __init__(self, factor: float = 1.0) -> None:
        self.twice = 2 * factor

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        return self.twice


class First(Merge):
    """The weights of the first neighbour that has them."""

    def combine(self, values: Tensor, present: Tensor, weights: Tensor, theta0: Tensor) -> Tensor:
        return values.gather(0, present.long().argmax(0, keepdim=True))[0]
