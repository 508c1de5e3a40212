"""Tables of units, parameters and MACs: what pruning has left, and what it will leave."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.pruning.settings import RoundPlan
from lightning_mvp.pruning.words import percent


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
    table = Table(
        title=f"Pruned to ratio {masks.pruning_ratio:.2f}",
        caption="A group's row says what would be left of all parameters and MACs of the backbone if only this group's "
        "units had been removed; the last two rows are of all groups together.",
        caption_justify="left",
    )
    for column in ("group", "kind"):
        table.add_column(column)
    for column in ("units", "kept", "parameters left\nby this group alone", "MACs left\nby this group alone"):
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


def plan_table(plans: Sequence[RoundPlan], ratio_of: str, groups: Groups, cost: CostModel) -> Table:
    """A row for each round that is planned.

    Args:
        plans: from :func:`~lightning_mvp.pruning.settings.plan_rounds`.
        ratio_of: what their fractions are fractions of.
        groups: the backbone's groups.
        cost: of the same backbone and groups.

    Returns:
        A table for ``rich.print``; "–" stands for what is known only while it trains.
    """
    full, units = Masks.full(groups), sum(groups.sizes.values())
    what = {"units": "units", "params": "parameters", "macs": "MACs"}[ratio_of]
    table = Table(title=f"{len(groups)} groups of {units:,} units, {cost.macs(full):,} MACs an image")
    for column in ("round", "after step", f"{what} to keep", "units left", "MACs left"):
        table.add_column(column, justify="right")
    for plan in plans:
        table.add_row(
            str(plan.round),
            "–" if plan.step is None else str(plan.step),
            percent(plan.kept_fraction),
            "–" if plan.widths is None else f"{sum(plan.widths.values()):,}",
            "–" if plan.macs is None else percent(plan.macs / cost.macs(full)),
        )
    return table
