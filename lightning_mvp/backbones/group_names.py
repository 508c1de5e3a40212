"""What groups of units are called: by their place in the backbone, the same in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning_mvp.backbones.units import Kind, UnitGroup


def group_name(producers: Sequence[str], kind: Kind, deeper: int = 0) -> str:
    """``layer1.residual`` by the stage of the last layer that adds to it, ``blocks.3.mlp``, or the layer's own name.

    Args:
        producers: the layers that produce the units, in forward order.
        kind: of the group.
        deeper: how many more parts of the last layer's name than those of the stage a residual group is called by.

    Example:
        >>> group_name(["layer1.0.conv2", "layer1.1.conv2"], "residual"), group_name(["blocks.3.mlp.fc1"], "mlp")
        ('layer1.residual', 'blocks.3.mlp')
    """
    parts = producers[-1].split(".")
    if kind == "residual":
        stage = next((i for i, part in enumerate(parts) if i and part[-1].isdigit()), len(parts) - 1)
        if parts[stage].isdigit() and not parts[stage - 1][-1].isdigit():  # stages.1, where others say layer1
            stage += 1
        return ".".join([*parts[: stage + deeper], "residual"])
    if kind == "mlp" and len(parts) > 1 and not parts[-1].isdigit():
        return ".".join(parts[:-1])
    return producers[0]


def distinct(groups: Sequence[UnitGroup], sources: Callable[[list[str]], list[str]]) -> list[UnitGroup]:
    """The groups, of which those that would share a name are named by a smaller part, or by their first layer.

    Args:
        groups: in forward order.
        sources: gives those of some producers that begin units.
    """
    names = [group.name for group in groups]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        alike = [i for i, other in enumerate(names) if other == name]
        layers = {i: _producers(groups[i]) for i in alike}
        smaller = {i: group_name(sources(layers[i]), groups[i].kind, deeper=1) for i in alike}
        are_distinct = len(set(smaller.values())) == len(alike) and not set(smaller.values()) & set(names)
        for i in alike:
            names[i] = smaller[i] if are_distinct else f"{layers[i][0]}.{groups[i].kind}"
    return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def _producers(group: UnitGroup) -> list[str]:
    """The layers that produce a group's units, in forward order."""
    weights = [member.tensor for member in group.members if member.role == "producer"]
    return list(dict.fromkeys(tensor.rpartition(".")[0] for tensor in weights))
