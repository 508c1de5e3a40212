"""All options of a vote in one object, which entry points hand on to the vote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypedDict

from lightning_mvp.backbones.masks import require_round_to
from lightning_mvp.backbones.reconstruct import require_count
from lightning_mvp.extensions import Choices
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.schedule import require_ratio
from lightning_mvp.voting.merge import Missing
from lightning_mvp.voting.merges import MERGES, Mean, Merge
from lightning_mvp.voting.ranking import SHORTLIST, Configs
from lightning_mvp.voting.similarities import SIMILARITIES, Leep, Similarity
from lightning_mvp.voting.target import REESTIMATION_BATCHES
from lightning_mvp.voting.vote import Ballots, require_temperature

AnySimilarity: TypeAlias = "Similarity | str | Mapping[str, Any]"
AnyMerge: TypeAlias = "Merge | str | Mapping[str, Any]"
CHOICES: dict[str, Choices[Any]] = {"similarity": SIMILARITIES, "merge": MERGES}


class VoteKeywords(TypedDict, total=False):
    """:class:`VoteOptions` as keyword arguments, for editors and type checkers."""

    pruning_ratio: float | None
    similarity: AnySimilarity
    temperature: float | None
    merge: AnyMerge
    missing: Missing
    ballots: Ballots
    config: Configs
    seed: int
    scoring_images: int
    reestimate_batches: int
    exclude: Collection[str]
    round_to: int
    shortlist: int | None
    reconstruct: int


@dataclass(frozen=True)
class VoteOptions:
    """How a vote is held: keyword arguments of :func:`~lightning_mvp.voting.voted.voted_backbone` and others.

    Args:
        pruning_ratio: fraction of each group's units removed, in (0, 1); None takes the neighbours' mean widths.
        similarity: "leep", "prototypes", "cover"; "latest", the entries that a zoo grew last, without a look at any
            image; or the controls "random" and "farthest"; or a
            :class:`~lightning_mvp.voting.similarities.Similarity` of your own, as an object or as a mapping with
            ``_target_``.
        temperature: each neighbour's votes and weights count by softmax(score / temperature); None counts all alike.
            On CIFAR-100, with entries that share a parent, 0.1 changed nothing: +0.2 points [−0.9, +1.2] (see
            benchmarks/cifar100).
        merge: "mean", or a :class:`~lightning_mvp.voting.merges.Merge` of your own, as an object or as a mapping with
            ``_target_``.
        missing: what a weight gets that no neighbour kept: "theta0", "producer" or "zero", see
            :func:`~lightning_mvp.voting.merge.merge`.
        ballots: a neighbour's vote for a unit that it kept is 1 with "masks", and the unit's stored importance with
            "importance", which changed nothing on CIFAR-100 (−0.4 points [−1.4, +0.6]).
        config: hash of the pruning config whose entries may vote; several hashes, or ``"all"``, for entries of several
            trainings; None takes the one with most entries, and a warning says which are left out.
        seed: seeds every random choice.
        scoring_images: the most images, class-balanced, by which similarity is scored; two of each class if that is
            more.
        reestimate_batches: the most batches by which batch-norm statistics are estimated; 0 keeps the merged ones.
        exclude: names of entries that must not vote.
        round_to: round the channels of each group up to a multiple of this, such as 8; never whole heads.
        shortlist: how many entries of a larger zoo are read and scored, see
            :func:`~lightning_mvp.voting.ranking.rank_neighbours`; None scores all.
        reconstruct: the number of the target's images to which the merged weights are refitted, layer by layer, so that
            each layer gives what the zoo's dense backbone gives
            (:func:`~lightning_mvp.backbones.reconstruct.reconstruct`). 0 keeps the merged weights, and 1,000 are
            enough. Where the loader gave fewer images, all are used.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> type(VoteOptions(similarity="prototypes").similarity).__name__
        'Prototypes'
    """

    pruning_ratio: float | None = None
    similarity: Similarity = field(default_factory=Leep)
    temperature: float | None = None
    merge: Merge = field(default_factory=Mean)
    missing: Missing = "theta0"
    ballots: Ballots = "masks"
    config: Configs = None
    seed: int = 0
    scoring_images: int = 500
    reestimate_batches: int = REESTIMATION_BATCHES
    exclude: Collection[str] = ()
    round_to: int = 1
    shortlist: int | None = SHORTLIST
    reconstruct: int = 0

    def __post_init__(self) -> None:
        if self.pruning_ratio is not None:
            require_ratio(self.pruning_ratio)
        for name, choices in CHOICES.items():
            object.__setattr__(self, name, choices.resolve(getattr(self, name)))
        require_choice("missing", self.missing, Missing)
        require_choice("ballots", self.ballots, Ballots)
        require_temperature(self.temperature)
        require_round_to(self.round_to)
        if require_count(self.reconstruct) and not self.reestimate_batches:
            raise ValueError(
                "Expected argument `reestimate_batches` to be at least 1 with `reconstruct`, but got 0: the merged "
                "batch-norm statistics do not fit weights that are refitted."
            )


VOTE_OPTIONS = frozenset(each.name for each in fields(VoteOptions))


def stored_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as an entry's config keeps them: what may be an object in its plain form.

    Raises:
        ValueError: an object whose class can't be imported elsewhere, or whose arguments are not plain.

    Example:
        >>> stored_options({"similarity": Leep(), "temperature": 0.1})
        {'similarity': 'leep', 'temperature': 0.1}
    """
    return {name: CHOICES[name].stored(value) if name in CHOICES else value for name, value in options.items()}
