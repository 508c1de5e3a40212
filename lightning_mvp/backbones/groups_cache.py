"""Groups that were found once are remembered: by this process, and in a folder if one is named."""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor, nn

from lightning_mvp.backbones.structure import Structure, structure_of
from lightning_mvp.backbones.units import Groups, Member, UnitGroup
from lightning_mvp.files import write_whole

FOLDER_VARIABLE = "LIGHTNING_MVP_CACHE"
FORMAT = "lightning-mvp-groups-1"
MOST = 128  # backbones that a process remembers


# For each structure, by whether the self-check was run: the groups that it left, or all that were found.
_found: OrderedDict[tuple[str, bool], Groups] = OrderedDict()


class GroupsCache:
    """What is known of the groups of one backbone.

    ``LIGHTNING_MVP_CACHE=FOLDER`` keeps groups for other processes, too, if all code of the backbone is that of
    released libraries. A file there that is damaged, or of other versions, is ignored and written anew. Never put such
    a folder where somebody else may write.

    Args:
        backbone: any module; not kept.
        inputs: of one forward pass.

    Example:
        >>> import torch
        >>> net, images = nn.Sequential(nn.Conv2d(3, 4, 1)), (torch.zeros(1, 3, 2, 2),)
        >>> GroupsCache(net, images).put(Groups([]), checked=False)
        >>> GroupsCache(net, images).get(checked=True) is None, GroupsCache(net, images).get(checked=False)
        (True, Groups of 0 units:)
    """

    def __init__(self, backbone: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._structure: Structure | None = structure_of(backbone, inputs)

    def get(self, checked: bool) -> Groups | None:
        """The groups, a copy; None if they are not known.

        Args:
            checked: whether those are wanted that the self-check has left; else all that were found.
        """
        if self._structure is None:
            return None
        slot = self._structure.key, checked
        if slot not in _found and checked and (stored := self._read()) is not None:
            self._remember(stored, checked)
        if slot not in _found:
            return None
        _found.move_to_end(slot)
        return Groups(_found[slot], _found[slot].skipped)

    def put(self, groups: Groups, checked: bool) -> None:
        """Remember groups: if ``checked`` those that the self-check has left, else all that were found."""
        if self._structure is None:
            return
        self._remember(Groups(groups, groups.skipped), checked)
        path = self._path
        if path is not None and checked:
            with contextlib.suppress(OSError):  # another job may be writing it, or nobody may: the cache is not needed
                write_whole(path, _packed(groups), overwrite=True)

    def _remember(self, groups: Groups, checked: bool) -> None:
        assert self._structure is not None
        _found[self._structure.key, checked] = groups
        while len(_found) > MOST:
            _found.popitem(last=False)

    @property
    def _path(self) -> Path | None:
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder or self._structure is None or not self._structure.portable:
            return None
        return Path(folder) / "groups" / f"{self._structure.key}.safetensors"

    def _read(self) -> Groups | None:
        """The groups in the folder, which the self-check has left; None without such a file."""
        path = self._path
        if path is None or not path.exists():
            return None
        with contextlib.suppress(Exception):  # a damaged file may raise anything, and is made again
            return _unpacked(path.read_bytes())
        return None


def _packed(groups: Groups) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    records = []
    for group in groups:
        if group.feature_index is not None:
            tensors[f"features/{group.name}"] = np.ascontiguousarray(group.feature_index)
        members = []
        for member in group.members:
            tensors[f"index/{len(tensors)}"] = np.ascontiguousarray(member.index)
            members.append([member.tensor, member.axis, f"index/{len(tensors) - 1}", member.role, member.gate])
        records.append([group.name, group.kind, group.size, members])
    about = np.frombuffer(json.dumps([FORMAT, records, list(groups.skipped)]).encode(), np.uint8)
    return save({**tensors, "about": about})


def _unpacked(payload: bytes) -> Groups:
    tensors = {name: array.copy() for name, array in load(payload).items()}  # torch wants arrays that may be written to
    format_, records, skipped = json.loads(tensors["about"].tobytes())
    if format_ != FORMAT:
        raise ValueError(format_)
    return Groups(
        [
            UnitGroup(
                name,
                kind,
                size,
                tuple(Member(tensor, axis, tensors[index], role, gate) for tensor, axis, index, role, gate in members),
                tensors.get(f"features/{name}"),
            )
            for name, kind, size, members in records
        ],
        skipped,
    )
