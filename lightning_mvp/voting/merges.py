"""How the neighbours' weights become one: one class for each way of merging."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_mvp.extensions import Choices


class Merge(ABC):
    """How the weights of several neighbours become one. A merge of your own is a subclass with :meth:`combine`.

    :func:`~lightning_mvp.voting.merge.merge` brings the neighbours' tensors to the shape of the voted model and calls
    `combine` for each tensor. It takes batch-norm statistics and counters as means itself, since these describe images
    rather than weights, and fills in what no neighbour has.
    """

    @abstractmethod
    def combine(self, values: Tensor, present: Tensor, weights: Tensor, theta0: Tensor) -> Tensor:
        """One tensor of the voted model.

        Args:
            values: ``(neighbours, *shape)`` float64, the neighbours' tensors, in the order of the neighbours' names; 0
                where a neighbour lacks the entry.
            present: ``(neighbours, *shape)`` bool, whether a neighbour has the entry.
            weights: ``(neighbours,)`` float64, how much each neighbour counts, 1 on average.
            theta0: ``(*shape)`` float64, the values before any pruning and fine-tuning.

        Returns:
            ``(*shape)``; what is given for entries that no neighbour has is not used.
        """


class Mean(Merge):
    """The weighted mean. `merge` adds it up neighbour by neighbour, so that one tensor is in memory at a time."""

    combine = None  # type: ignore[assignment]


MERGES = Choices("merge", Merge, {"mean": Mean})  # type: ignore[type-abstract]  # it is only asked who inherits from it
