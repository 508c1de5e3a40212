"""How units are chosen: importance, criteria, schedule and the decision itself."""

from lightning_mvp.pruning.choose import RatioOf, Scope, choose_masks, top_units
from lightning_mvp.pruning.criteria import Candidates, Criterion, Magnitude, Random, Taylor, taylor_importance
from lightning_mvp.pruning.importance import magnitude_importance, normalised, random_importance
from lightning_mvp.pruning.schedule import Schedule

__all__ = [
    "Candidates",
    "Criterion",
    "Magnitude",
    "Random",
    "RatioOf",
    "Schedule",
    "Scope",
    "Taylor",
    "choose_masks",
    "magnitude_importance",
    "normalised",
    "random_importance",
    "taylor_importance",
    "top_units",
]
