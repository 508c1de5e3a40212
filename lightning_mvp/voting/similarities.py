"""How near an entry of a zoo is to a target task: one class for each similarity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_mvp.extensions import Choices
from lightning_mvp.voting.labels import informative_labels, require_content
from lightning_mvp.voting.leep import covering_order, expected_predictions, label_entropy, leep
from lightning_mvp.voting.recall import class_means, recalled
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.voting.trust import Evidence
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.lineage import lineage
from lightning_mvp.zoo.prototypes import prototype_similarity


class Similarity(ABC):
    """How near a zoo's entries are to a target task. A similarity of your own is a subclass with :meth:`score`.

    ``needs`` names what an entry must have, ``"head"`` or ``"prototypes"``: entries without it are skipped with a
    warning. ``needs_labels`` says whether labels decide anything: where it is false, any labels will do.
    ``needs_equal_classes`` says that scores are comparable only between entries with equally many classes: a warning
    is given where they differ.

    An object may serve many tasks, so it keeps nothing about one: ``target.memory`` is there for that.
    """

    needs: ClassVar[Literal["head", "prototypes"] | None] = None
    needs_labels: ClassVar[bool] = True
    needs_equal_classes: ClassVar[bool] = False

    @abstractmethod
    def score(self, entry: ZooEntry, target: TargetData) -> float:
        """The similarity of one entry to the task: a finite number, greater where the entry is nearer.

        Raises:
            DamagedEntryError: the entry can't be compared; it is skipped with a warning.
        """

    def require_labels(self, labels: Tensor) -> None:  # noqa: B027 (most similarities take any labels)
        """Refuse, before any work, labels that say nothing to this similarity.

        Args:
            labels: as :func:`~lightning_mvp.voting.labels.as_labels` gives them.

        Raises:
            ValueError: what was expected of the labels.
        """

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        """The entries of a zoo of more than `most` entries that are worth reading. By default it is all of them."""
        return target.names

    def order(self, scores: Mapping[str, float], target: TargetData, k: int | None) -> list[str]:
        """The names of the scored entries, at least the best `k`, best first. By default the greatest score is best."""
        return sorted(scores, key=lambda name: (-scores[name], name))

    def evidence(self, scores: Mapping[str, float], target: TargetData, whole: bool) -> Evidence | None:
        """What the scores tell about a vote's chances; `whole` says whether all entries were scored."""
        return None


class Leep(Similarity):
    """The log expected empirical prediction of each entry's model, see :func:`~lightning_mvp.voting.leep.leep`."""

    needs = "head"
    needs_equal_classes = True

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        return leep(target.probabilities(entry), target.labels)

    def require_labels(self, labels: Tensor) -> None:
        require_content(labels)

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        found = recalled(target)
        return [*found.order[:most], *found.others]

    def evidence(self, scores: Mapping[str, float], target: TargetData, whole: bool) -> Evidence:
        return Evidence.of(list(scores.values()), label_entropy(target.labels), whole)


class Farthest(Leep):
    """The entries of the least LEEP first: a control."""

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        found = recalled(target)
        return [*found.order[-most:], *found.others]

    def order(self, scores: Mapping[str, float], target: TargetData, k: int | None) -> list[str]:
        return sorted(scores, key=lambda name: (scores[name], name))


class Cover(Leep):
    """Entries that predict the task together, see :func:`~lightning_mvp.voting.leep.covering_order`.

    Scores are LEEP. On CIFAR-100 with 8 neighbours it was no better than `Leep`: −0.1 points [−1.3, +0.9]
    (benchmarks/cifar100/cnn/report.md).
    """

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        probabilities = target.probabilities(entry)
        target.memory[entry.name] = expected_predictions(probabilities, target.labels)
        return leep(probabilities, target.labels)

    def require_labels(self, labels: Tensor) -> None:
        super().require_labels(labels)
        if labels.ndim != 1:
            raise ValueError(
                "Expected one class per image for similarity='cover', but got multi-hot labels. Use 'leep'."
            )

    def order(self, scores: Mapping[str, float], target: TargetData, k: int | None) -> list[str]:
        names = sorted(scores)
        rows = torch.stack([target.memory[name] for name in names])
        return [names[row] for row in covering_order(rows, len(names) if k is None else k)]


class Prototypes(Similarity):
    """How well an entry's class means cover the task's, in θ⁰'s feature space.

    See :func:`~lightning_mvp.zoo.prototypes.prototype_similarity`.
    """

    needs = "prototypes"

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        own, features = entry.prototypes, target.features(entry.seen_by)
        if own is None or own.shape[1] != features.shape[1]:
            raise DamagedEntryError(
                f"Expected the prototypes of entry {entry.name!r} to have {features.shape[1]} features, as θ⁰ has, but "
                f"got {None if own is None else own.shape[1]}. Remove the entry from its zoo and prune this task again."
            )
        return prototype_similarity(own, class_means(features, target.labels))

    def require_labels(self, labels: Tensor) -> None:
        if labels.ndim == 2 and len(labels):
            informative_labels(labels)

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        return recalled(target, by_leep=False).order[:most]


class Random(Similarity):
    """Entries drawn by the seed: a control. All scores are 0, and no label is looked at."""

    needs_labels = False

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        return 0.0

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        return target.shuffled_names[:most]

    def order(self, scores: Mapping[str, float], target: TargetData, k: int | None) -> list[str]:
        return [name for name in target.shuffled_names if name in scores]


class Latest(Similarity):
    """The entries that a zoo grew last: of the highest wave, and in it last by name. No image is looked at.

    In a zoo that grew by use the nearest entries were no better (benchmarks/cifar100/grown/report.md), and these cost
    no pass through any model. Of a zoo without grown entries these are the last ones by name. All scores are 0.
    """

    needs_labels = False

    def score(self, entry: ZooEntry, target: TargetData) -> float:
        return 0.0

    def shortlist(self, target: TargetData, most: int) -> Sequence[str]:
        return self._latest(target)[:most]

    def order(self, scores: Mapping[str, float], target: TargetData, k: int | None) -> list[str]:
        return [name for name in self._latest(target) if name in scores]

    def _latest(self, target: TargetData) -> list[str]:
        names: list[str] | None = target.memory.get("latest")
        if names is None:
            names = [member.name for member in reversed(lineage(target.zoo, target.names))]
            target.memory["latest"] = names
        return names


SIMILARITIES = Choices(
    "similarity",
    Similarity,  # type: ignore[type-abstract]  # it is only asked who inherits from it
    {
        "leep": Leep,
        "prototypes": Prototypes,
        "cover": Cover,
        "latest": Latest,
        "random": Random,
        "farthest": Farthest,
    },
)
