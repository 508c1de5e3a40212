"""How much the masks of a zoo's tasks have in common, what chance alone would give, and what it goes together with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.study.mantel import mantel
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.records import rank_part, read_record
from lightning_mvp.zoo.kinship import mask_overlap

# A group of fewer units says little by itself: a unit more or less changes its IoU by more than tasks do.
FEW_UNITS = 8


@dataclass(frozen=True)
class OverlapRow:
    """The overlap of all pairs of tasks in one group at one pruning ratio.

    Args:
        pruning_ratio: of the units, after the round that the masks are of.
        group: its name, or ``"all"`` for all groups together, each weighted by its units, or ``"all mlp"`` for those
            of a kind, where there are several kinds.
        depth: its place in the forward pass; -1 for several groups.
        units: of the group in the backbone.
        kept: mean number of units kept.
        iou: mean over pairs, and
        deviation: its standard deviation over pairs.
        random: expected of random masks of these widths.
        magnitude: mean IoU of a task's mask with the backbone's own magnitude mask.
        leep: correlation of IoU with LEEP (mean of both directions) over pairs, with Mantel's
        leep_p: p-value; likewise
        classes, classes_p: with the number of shared classes, and
        superclasses, superclasses_p: with that of shared superclasses; NaN where they are not known.
    """

    pruning_ratio: float
    group: str
    depth: int
    units: int
    kept: float
    iou: float
    deviation: float
    random: float
    magnitude: float
    leep: float
    leep_p: float
    classes: float
    classes_p: float
    superclasses: float
    superclasses_p: float


def shared(sets: Sequence[set[str]]) -> np.ndarray:
    """How many members each two sets have in common, ``(n, n)``.

    Example:
        >>> shared([{"a", "b"}, {"b"}]).tolist()
        [[2, 1], [1, 1]]
    """
    return np.array([[len(one & other) for other in sets] for one in sets])


def leep_matrix(folder: Path, tasks: Sequence[str]) -> np.ndarray:
    """LEEP of each zoo task's model on each other's data, the mean of both directions, ``(n, n)``."""
    place, scores = {task: i for i, task in enumerate(tasks)}, np.zeros((len(tasks), len(tasks)))
    for task, row in place.items():
        record = read_record(folder, rank_part(task, "leep"))
        assert record is not None, "rankings of the sources are parts of this stage"
        for neighbour in record["similarities"]:
            column = place.get(neighbour["name"].rpartition("--")[0])
            if column is not None and column != row:
                scores[row, column] = neighbour["score"]
    return (scores + scores.T) / 2


def study_overlap(
    sources: Sequence[Mapping[str, Any]],
    origin: Origin,
    leep: np.ndarray,
    superclass_of: Mapping[str, str] | None = None,
) -> list[OverlapRow]:
    """All pairs of zoo tasks, in each group and overall, after three of the rounds.

    Args:
        sources: the records of the zoo's entries.
        origin: what they were pruned from.
        leep: ``(n, n)``, of the tasks in this order.
        superclass_of: class → superclass.
    """
    classes = [set(record["classes"]) for record in sources]
    beside = {"leep": leep, "classes": shared(classes)}
    if superclass_of is not None:
        beside["superclasses"] = shared([{superclass_of[name] for name in each} for each in classes])
    magnitudes, sizes = magnitude_importance(origin.build().state_dict(), origin.groups), origin.groups.sizes
    together_with = {"all": list(sizes)}
    kinds = dict.fromkeys(group.kind for group in origin.groups)
    if len(kinds) > 1:
        of_kind = {f"all {kind}": [group.name for group in origin.groups if group.kind == kind] for kind in kinds}
        together_with = of_kind | together_with
    rounds, rows = len(sources[0]["rounds"]), []
    for number in sorted({math.ceil(rounds * third / 3) - 1 for third in (1, 2, 3)}):
        masks = [_flags(record["rounds"][number]["kept"], sizes) for record in sources]
        ratio = sources[0]["rounds"][number]["pruning_ratio"]
        own = top_units(magnitudes, {group: int(mask.sum()) for group, mask in masks[0].items()})
        theirs = {group: mask.numpy() for group, mask in own.items()}
        for depth, group in enumerate([*sizes, *together_with]):
            chosen = together_with.get(group, [group])
            part = [{name: mask[name] for name in chosen} for mask in masks]
            iou, random = mask_overlap(part, part)
            pairs = np.triu_indices(len(part), 1)
            found = {name: mantel(iou, matrix) for name, matrix in beside.items()}
            together: dict[str, float] = {"superclasses": math.nan, "superclasses_p": math.nan}
            for name, test in found.items():
                together |= {name: test.correlation, f"{name}_p": test.p}
            rows.append(
                OverlapRow(
                    pruning_ratio=ratio,
                    group=group,
                    depth=-1 if group in together_with else depth,
                    units=sum(sizes[name] for name in chosen),
                    kept=float(np.mean([sum(mask[name].sum() for name in chosen) for mask in masks])),
                    iou=float(iou[pairs].mean()),
                    deviation=float(iou[pairs].std()),
                    random=float(random[pairs].mean()),
                    magnitude=float(mask_overlap(part, [{name: theirs[name] for name in chosen}])[0].mean()),
                    **together,
                )
            )
    return rows


def _flags(kept: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    return {group: np.isin(np.arange(size), kept[group]) for group, size in sizes.items()}
