"""What can be pruned: units, the groups they form, and the tensor entries that each unit owns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

SHOWN = 200  # characters of a note that are shown: a note may name hundreds of layers

Kind = Literal["conv", "residual", "mlp", "heads"]
Role = Literal["producer", "norm", "statistic", "consumer"]


@dataclass(frozen=True, eq=False)
class Member:
    """A tensor of which every unit of a group owns some entries along one axis.

    Args:
        tensor: its name in the backbone's state dict.
        axis: the axis along which units own entries.
        index: int64 ``(units, span)``, the entries of the axis that each unit owns.
        role: a ``producer`` computes the unit; a ``norm`` scales and shifts it; a ``statistic`` is a norm's buffer; a
            ``consumer`` reads the unit.
        gate: whether the sum of weight · gradient over the unit's entries, added up over all gate members, is the
            loss's derivative by a gate on the unit's output (see "Importance" in docs/design.md).
    """

    tensor: str
    axis: int
    index: np.ndarray
    role: Role
    gate: bool = False


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that the architecture couples: removing one removes its entries of every member.

    Args:
        name: canonical, the same in every process: ``layer1.residual``, ``layer1.0.conv1``, ``blocks.3.mlp``,
            ``blocks.3.attn.heads``.
        kind: ``conv`` (one layer's channels), ``residual`` (channels that several layers add to), ``mlp`` (hidden
            neurons) or ``heads`` (attention heads).
        size: number of units.
        members: the tensors of which the units own entries.
        feature_index: int64 ``(units, span)`` into the backbone's output features, if the units are some of them.
    """

    name: str
    kind: Kind
    size: int
    members: tuple[Member, ...]
    feature_index: np.ndarray | None = None


class Groups:
    """All groups of a backbone, in the order of its forward pass.

    Args:
        groups: with distinct names.
        skipped: one note for each part of the backbone that was left out, with the reason.

    Raises:
        ValueError: two groups share a name.

    Example:
        >>> rows = Member("conv.weight", 0, np.array([[0], [1], [2]]), "producer")
        >>> groups = Groups([UnitGroup("conv", "conv", 3, (rows,))])
        >>> groups.kept("conv.weight", (3, 5), {"conv": np.array([True, False, True])})
        (array([0, 2]), None)
    """

    def __init__(self, groups: Iterable[UnitGroup], skipped: Sequence[str] = ()) -> None:
        self._groups: dict[str, UnitGroup] = {}
        self.skipped = list(skipped)
        self.layout: dict[str, list[tuple[int, str, np.ndarray]]] = {}
        for group in groups:
            if group.name in self._groups:
                raise ValueError(f"Expected groups with distinct names, but got {group.name!r} twice.")
            self._groups[group.name] = group
            for member in group.members:
                self.layout.setdefault(member.tensor, []).append((member.axis, group.name, member.index))

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def __getitem__(self, name: str) -> UnitGroup:
        if name not in self._groups:
            raise KeyError(f"No group {name!r}; there are {', '.join(self._groups) or 'none'}.")
        return self._groups[name]

    def __repr__(self) -> str:
        lines = [f"  {group.name}: {group.size} units ({group.kind})" for group in self]
        notes = [f"  - {note if len(note) <= SHOWN else note[:SHOWN] + ' …'}" for note in self.skipped]
        return "\n".join([f"Groups of {sum(self.sizes.values())} units:", *lines, *notes])

    @property
    def names(self) -> list[str]:
        """The groups' names, in forward order."""
        return list(self._groups)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units of each group."""
        return {group.name: group.size for group in self}

    @property
    def feature_groups(self) -> list[UnitGroup]:
        """The groups whose units are output features of the backbone; several where it ends in a concatenation."""
        return [group for group in self if group.feature_index is not None]

    def kept(self, tensor: str, shape: Sequence[int], masks: Mapping[str, Any]) -> tuple[np.ndarray | None, ...]:
        """The entries of a tensor that remain, for each of its axes.

        Args:
            tensor: a state dict name; one in no group keeps everything.
            shape: its full shape.
            masks: group → ``(units,)`` bool. A group without a mask keeps everything.

        Returns:
            For each axis the kept entries, ascending int64, or None where the axis belongs to no group.
        """
        alive: list[np.ndarray | None] = [None] * len(shape)
        for axis, name, index in self.layout.get(tensor, ()):
            flags = alive[axis]
            if flags is None:
                flags = alive[axis] = np.ones(shape[axis], dtype=bool)
            if name in masks:
                flags[index[~np.asarray(masks[name])]] = False
        return tuple(None if flags is None else np.flatnonzero(flags) for flags in alive)

    def kept_features(self, masks: Mapping[str, Any], n_features: int) -> np.ndarray:
        """The output features that remain, ascending int64: all of them where no group is the output."""
        alive = np.ones(n_features, dtype=bool)
        for group in self.feature_groups:
            if group.feature_index is not None and group.name in masks:
                alive[group.feature_index[~np.asarray(masks[group.name])]] = False
        return np.flatnonzero(alive)

    def select(self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None) -> Groups:
        """The groups whose names match a pattern of ``include`` (None: all) and none of ``exclude``.

        Args:
            include: patterns as of ``fnmatch``, such as ``"layer3.*"``, or kinds: ``"conv"``, ``"residual"``, ``"mlp"``
                or ``"heads"``.
            exclude: patterns as of ``fnmatch``, or kinds. One that only matches what was left out already
                (``groups.skipped``) changes nothing.

        Raises:
            ValueError: a pattern matches neither a group nor what was left out, or no group is left.

        Example:
            >>> groups = Groups([UnitGroup(name, "mlp", 4, ()) for name in ("blocks.0.mlp", "blocks.1.mlp")])
            >>> groups.select(exclude=["blocks.0.*"]).names
            ['blocks.1.mlp']
        """

        def matches(name: str, patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(name, pattern) or self[name].kind == pattern for pattern in patterns)

        for pattern in [*(include or ()), *(exclude or ())]:
            if not any(matches(name, [pattern]) for name in self.names) and not self._left_out(pattern):
                raise ValueError(f"Pattern {pattern!r} matches no group; there are {', '.join(self.names)}.")
        chosen = [
            name
            for name in self.names
            if (include is None or matches(name, include)) and not matches(name, exclude or ())
        ]
        if not chosen:
            raise ValueError(f"No group is left by include={include} and exclude={exclude}; loosen the patterns.")
        left_out = [f"{name}: not selected" for name in self.names if name not in chosen]
        return Groups([self[name] for name in chosen], [*self.skipped, *left_out])

    def _left_out(self, pattern: str) -> bool:
        """Whether a pattern matches a layer that a note names, or the module that holds it."""
        words = {word for note in self.skipped for word in re.findall(r"[\w.]+", note)}
        parts = {".".join(word.split(".")[:end]) for word in words for end in range(1, word.count(".") + 2)}
        return any(fnmatchcase(part, pattern) for part in words | parts)

    def listed(self, sizes: Mapping[str, int], where: str) -> Groups:
        """The groups that a zoo lists; all others stay whole.

        Args:
            sizes: group → its number of units, in the zoo's order.
            where: the zoo, for errors.

        Raises:
            ValueError: a group of the zoo is missing or of another size; the message names it and the reason.
        """
        for name, size in sizes.items():
            if name in self._groups and self[name].size == size:
                continue
            note = next((note for note in self.skipped if note.startswith((f"{name}:", f"{name},"))), None)
            found = f"{self[name].size} units" if name in self._groups else note or "no such group"
            raise ValueError(
                f"Expected the backbone to have the groups of the zoo at {where}, such as `{name}` of {size} units, "
                f"but it has {found}. Use the backbone that the zoo was made with; if a group is no longer exact, "
                "fill a new zoo."
            )
        if list(sizes) == self.names:
            return self
        more = [f"{name}: left whole, the zoo does not list it" for name in self.names if name not in sizes]
        return Groups([self[name] for name in sizes], [*self.skipped, *more])
