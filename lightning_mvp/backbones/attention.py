"""Whole attention heads as units, of attention modules that are made as timm's are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import nn

from lightning_mvp.backbones.units import Member, UnitGroup

BIAS_TABLE = "relative_position_bias_table"
PROJECTION = re.compile(r"(to_)?(q|k|v|kv|qk|qkv)(_proj|_linear)?")


def head_dim(attention: Any) -> int:
    """Channels of one head, also of Swin's attention, which has no attribute for it."""
    return int(getattr(attention, "head_dim", None) or attention.proj.in_features // attention.num_heads)


def attention_modules(backbone: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Attention whose heads can be cut: fused ``qkv``, then ``proj``, and no other tensor of heads but Swin's table.

    Returns:
        Name → module, and notes on the attention that is left out.
    """
    found: dict[str, Any] = {}
    notes = []
    for name, module in backbone.named_modules():
        qkv, proj, heads = (getattr(module, part, None) for part in ("qkv", "proj", "num_heads"))
        if not isinstance(qkv, nn.Module):
            continue
        table = getattr(module, BIAS_TABLE, None)
        allowed = {"qkv", "proj", "q_norm", "k_norm", BIAS_TABLE}
        others = sorted({p for p, _ in module.named_parameters() if p.split(".")[0] not in allowed})
        if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or not isinstance(heads, int):
            notes.append(f"{name}: heads left out, {type(module).__name__} is not timm's attention of qkv and proj")
        elif qkv.out_features != 3 * heads * head_dim(module) or proj.in_features != heads * head_dim(module):
            notes.append(f"{name}: heads left out, qkv and proj are not num_heads x head_dim wide")
        elif others:
            notes.append(f"{name}: heads left out, `{others[0]}` depends on the heads too")
        elif table is not None and (table.ndim != 2 or table.shape[1] != heads):
            notes.append(f"{name}: heads left out, `{BIAS_TABLE}` is not (positions, heads)")
        else:
            found[name] = module
    return found, notes


def projections(backbone: nn.Module) -> list[str]:
    """Names of the layers of any attention that compute queries, keys and values, whose outputs belong to heads."""
    return [
        f"{name}.{child}".lstrip(".")
        for name, module in backbone.named_modules()
        if hasattr(module, "num_heads")
        for child, _ in module.named_children()
        if PROJECTION.fullmatch(child)
    ]


def heads_group(name: str, attention: Any) -> UnitGroup:
    """The heads of one attention module as a group."""
    heads, dim = attention.num_heads, head_dim(attention)
    prefix = f"{name}." if name else ""
    columns = np.arange(heads * dim).reshape(heads, dim)
    rows = np.concatenate([columns + part * heads * dim for part in range(3)], axis=1)  # of queries, keys and values
    members = [Member(f"{prefix}qkv.weight", 0, rows, "producer")]
    if attention.qkv.bias is not None:
        members.append(Member(f"{prefix}qkv.bias", 0, rows, "producer"))
    if getattr(attention, BIAS_TABLE, None) is not None:  # its columns are cut with the heads
        members.append(Member(f"{prefix}{BIAS_TABLE}", 1, np.arange(heads)[:, None], "consumer"))
    members.append(Member(f"{prefix}proj.weight", 1, columns, "consumer", gate=True))
    return UnitGroup(f"{prefix}heads", "heads", heads, tuple(members))


def set_heads(attention: Any, heads: int) -> None:
    """Make an attention's attributes say how many heads its tensors have."""
    attention.num_heads = heads
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = heads * head_dim(attention)
