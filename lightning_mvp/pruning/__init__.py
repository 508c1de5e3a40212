"""How units are chosen: importance, schedule and the decision itself. Pure functions."""

from lightning_mvp.pruning.choose import RatioOf, Scope, choose_masks, top_units
from lightning_mvp.pruning.importance import (
    TaylorScores,
    magnitude_importance,
    normalised,
    random_importance,
    taylor_importance,
)
from lightning_mvp.pruning.schedule import Schedule

__all__ = [
    "RatioOf",
    "Schedule",
    "Scope",
    "TaylorScores",
    "choose_masks",
    "magnitude_importance",
    "normalised",
    "random_importance",
    "taylor_importance",
    "top_units",
]
