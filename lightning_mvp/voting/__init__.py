"""What is reused: from a zoo and a new task to the small model that its neighbours vote for."""

from lightning_mvp.voting.leep import leep
from lightning_mvp.voting.merge import MergeResult, merge
from lightning_mvp.voting.similarity import Neighbour, prototype_similarity, rank_neighbours
from lightning_mvp.voting.vote import coefficients, vote, vote_widths
from lightning_mvp.voting.voted import VoteReport, voted_backbone

__all__ = [
    "MergeResult",
    "Neighbour",
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
