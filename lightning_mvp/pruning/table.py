"""A table of units, parameters and MACs before and after pruning."""

from __future__ import annotations

from rich.table import Table

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks


def pruning_table(groups: Groups, masks: Masks, cost: CostModel) -> Table:
    """Units kept in each group, then parameters and MACs of the whole backbone, before and after.

    A group's own parameters and MACs are those that would be left if only this group were cut.

    Args:
        groups: the backbone's groups.
        masks: the units kept.
        cost: of the same backbone and groups.

    Returns:
        A table for ``rich.print``.
    """
    full = Masks.full(groups)
    table = Table(title=f"Pruned to ratio {masks.pruning_ratio:.2f}")
    for column in ("group", "kind"):
        table.add_column(column)
    for column in ("units", "kept", "parameters left", "MACs left"):
        table.add_column(column, justify="right")
    parameters, macs = cost.parameters(full), cost.macs(full)
    for group in groups:
        alone = Masks({**full, group.name: masks[group.name]})
        table.add_row(
            group.name,
            group.kind,
            f"{group.size:,}",
            f"{masks.kept[group.name]:,}",
            f"{cost.parameters(alone) / parameters:.1%}",
            f"{cost.macs(alone) / macs:.1%}",
        )
    table.add_section()
    kept, total = sum(masks.kept.values()), sum(groups.sizes.values())
    table.add_row(
        "whole backbone", "", f"{total:,}", f"{kept:,}", f"{cost.parameters(masks):,}", f"{cost.macs(masks):,}"
    )
    table.add_row(
        "of the dense one",
        "",
        "",
        f"{kept / total:.1%}",
        f"{cost.parameters(masks) / parameters:.1%}",
        f"{cost.macs(masks) / macs:.1%}",
    )
    return table
