"""The linear head of a backbone that has lost features."""

from __future__ import annotations

import torch
from torch import nn

from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks


def small_head(head: nn.Linear, groups: Groups, masks: Masks) -> nn.Linear:
    """The head of the small backbone: the columns of the features that are left, on the CPU."""
    kept = torch.as_tensor(groups.kept_features(masks, head.in_features))
    small = nn.Linear(len(kept), head.out_features, bias=head.bias is not None, dtype=head.weight.dtype)
    with torch.no_grad():
        small.weight.copy_(head.weight.detach().cpu()[:, kept])
        if head.bias is not None:
            small.bias.copy_(head.bias.detach().cpu())
    return small
