"""What is pruned: backbones, their units, masks over them, and the smaller models that masks leave."""

from lightning_mvp.backbones.cost import CostModel, count_macs, count_parameters
from lightning_mvp.backbones.create import create_backbone, load_weights, recipe_of
from lightning_mvp.backbones.features import classifier_name, features_of, reestimate_batch_norm
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks, apply_masks, dead_entries, random_masks, widths, zero_entries
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.backbones.selfcheck import check_exact
from lightning_mvp.backbones.surgery import shrink, slice_state
from lightning_mvp.backbones.units import Groups, Member, UnitGroup

__all__ = [
    "CostModel",
    "Groups",
    "Masks",
    "Member",
    "UnitGroup",
    "apply_masks",
    "check_exact",
    "classifier_name",
    "count_macs",
    "count_parameters",
    "create_backbone",
    "dead_entries",
    "features_of",
    "find_groups",
    "load_weights",
    "random_masks",
    "recipe_of",
    "reestimate_batch_norm",
    "ridge_head",
    "shrink",
    "slice_state",
    "widths",
    "zero_entries",
]
