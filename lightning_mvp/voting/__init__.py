"""What is reused: from a zoo and a new task to the small model that its neighbours vote for."""

from lightning_mvp.voting.leep import leep
from lightning_mvp.voting.merge import MergeResult, merge
from lightning_mvp.voting.merges import Merge
from lightning_mvp.voting.ranking import Neighbour, rank_neighbours
from lightning_mvp.voting.report import VoteReport
from lightning_mvp.voting.similarities import Similarity
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.voting.vote import coefficients, vote, vote_widths
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo.prototypes import prototype_similarity

__all__ = [
    "Merge",
    "MergeResult",
    "Neighbour",
    "Similarity",
    "TargetData",
    "VoteReport",
    "coefficients",
    "leep",
    "merge",
    "prototype_similarity",
    "rank_neighbours",
    "vote",
    "vote_widths",
    "voted_backbone",
]
