"""How much the masks of a zoo's tasks have in common, compared with chance, and what that correlates with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvp.pruning.choose import top_units
from lightning_mvp.study.mantel import mantel
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.records import rank_part, require_record
from lightning_mvp.zoo.kinship import mask_overlap

# In a group of fewer units a single unit changes the IoU more than another task does, so that it says little.
FEW_UNITS = 8


@dataclass(frozen=True)
class OverlapRow:
    """The overlap of all pairs of tasks in one group at one pruning ratio.

    Args:
        pruning_ratio: of the units, after the round that the masks are of.
        group: its name; ``"all"`` for all groups together, each weighted by its units; or, where there are several
            kinds of groups, ``"all mlp"`` for all of a kind.
        depth: the group's place in the forward pass; -1 for several groups.
        units: how many units the group has in the backbone.
        kept: mean number of units kept.
        iou: mean over pairs of tasks.
        deviation: standard deviation of the IoU over pairs.
        random: IoU to be expected of random masks of these widths.
        magnitude: mean IoU of a task's mask with the backbone's own magnitude mask.
        leep: correlation over pairs of IoU and LEEP, the mean of both directions.
        leep_p: p-value of that correlation by Mantel's test.
        classes: correlation over pairs of IoU and the number of shared classes.
        classes_p: p-value of that correlation by Mantel's test.
        superclasses: correlation over pairs of IoU and the number of shared superclasses; NaN where they are not known.
        superclasses_p: p-value of that correlation by Mantel's test; NaN where they are not known.
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
    superclasses: float = math.nan
    superclasses_p: float = math.nan


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
        for neighbour in require_record(folder, rank_part(task, "leep"))["similarities"]:
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
    magnitudes, sizes, rounds = origin.magnitudes(), origin.groups.sizes, len(sources[0]["rounds"])
    kinds = dict.fromkeys(group.kind for group in origin.groups)
    several = {f"all {kind}": [group.name for group in origin.groups if group.kind == kind] for kind in kinds}
    together = (several if len(kinds) > 1 else {}) | {"all": list(sizes)}
    rows = []
    for number in sorted({math.ceil(rounds * third / 3) - 1 for third in (1, 2, 3)}):
        masks = [_flags(record["rounds"][number]["kept"], sizes) for record in sources]
        own = top_units(magnitudes, {group: int(mask.sum()) for group, mask in masks[0].items()})
        theirs = {group: mask.numpy() for group, mask in own.items()}
        for depth, (group, names) in enumerate(({name: [name] for name in sizes} | together).items()):
            part = [{name: mask[name] for name in names} for mask in masks]
            rows.append(
                OverlapRow(
                    pruning_ratio=sources[0]["rounds"][number]["pruning_ratio"],
                    group=group,
                    depth=-1 if group in together else depth,
                    units=sum(sizes[name] for name in names),
                    magnitude=float(mask_overlap(part, [{name: theirs[name] for name in names}])[0].mean()),
                    **_over_pairs(part, beside),
                )
            )
    return rows


def _over_pairs(masks: Sequence[Mapping[str, np.ndarray]], beside: Mapping[str, np.ndarray]) -> dict[str, float]:
    iou, random = mask_overlap(masks, masks)
    pairs = np.triu_indices(len(masks), 1)
    tests = {name: mantel(iou, matrix) for name, matrix in beside.items()}
    return {
        "kept": float(np.mean([sum(own.sum() for own in mask.values()) for mask in masks])),
        "iou": float(iou[pairs].mean()),
        "deviation": float(iou[pairs].std()),
        "random": float(random[pairs].mean()),
        **{name: test.correlation for name, test in tests.items()},
        **{f"{name}_p": test.p for name, test in tests.items()},
    }


def _flags(kept: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    return {group: np.isin(np.arange(size), kept[group]) for group, size in sizes.items()}
