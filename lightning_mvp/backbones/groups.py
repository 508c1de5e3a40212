"""Find the units of a backbone: which tensor entries stand and fall together.

Channels and MLP neurons come from Torch-Pruning's dependency graph (its only use here), whole attention heads from
our own reading of timm's attention. Both end in the records of :mod:`lightning_mvp.backbones.units`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from lightning_mvp.backbones.attention import attention_modules, heads_group, projections
from lightning_mvp.backbones.conv_groups import Labels, block_labels, joined
from lightning_mvp.backbones.features import classifier_names
from lightning_mvp.backbones.groups_cache import GroupsCache
from lightning_mvp.backbones.inputs import as_inputs, one_sample
from lightning_mvp.backbones.units import Groups, Kind, Member, Role, UnitGroup

__all__ = ["Groups", "Kind", "Member", "Role", "UnitGroup", "find_groups"]


Part = Literal["producer", "norm", "consumer", "features"]


@dataclass(frozen=True)
class _Strand:
    """Channels that Torch-Pruning couples.

    Args:
        size: how many channels.
        items: the layers concerned, with index maps.
    """

    size: int
    items: list[Any]


def _conv_groups(module: Any) -> int:
    """The number of conv groups of a grouped or depthwise convolution, 0 for anything else."""
    return module.groups if isinstance(module, nn.Conv2d) and module.groups > 1 else 0


def _is_depthwise(module: Any) -> bool:
    """Torch-Pruning takes inputs and outputs of such a convolution for one."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


class _Unsupported(Exception):
    """A group that can't be masked or cut exactly; the message says why."""


def cpu_copy(backbone: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU in eval mode, without hooks and with every parameter trainable: free to be traced or spoilt."""
    # torch.nn.utils.prune keeps a masked weight as a computed tensor, which deepcopy refuses and hooks would renew.
    computed = (value for module in backbone.modules() for value in vars(module).values() if isinstance(value, Tensor))
    clone = copy.deepcopy(backbone, {id(value): value.detach().clone() for value in computed if not value.is_leaf})
    for module in clone.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    clone = clone.cpu().to(dtype).eval().requires_grad_(True)
    for module in clone.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
        if isinstance(module, nn.SyncBatchNorm):  # it refuses to run on the CPU in train mode
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return clone


class _Finder:
    """Reads groups off Torch-Pruning's graph of one traced copy of a backbone."""

    def __init__(self, clone: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.clone = clone
        self.names = {module: name for name, module in clone.named_modules()}
        self.calls = self._trace_order(inputs)
        self.attention, self.skipped = attention_modules(clone)
        self.fixed = set(projections(clone)) | set(classifier_names(clone))
        _refuse_partitions(clone)
        with torch.inference_mode(False), torch.enable_grad():
            # Inputs must require a gradient: the graph is read off autograd's. A tuple: a bare batch is taken apart.
            inputs = tuple(t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs)
            # Times one: where a layer's own output is returned, Torch-Pruning would not see that it is the output.
            try:
                self.graph = tp.DependencyGraph().build_dependency(
                    clone, inputs, output_transform=lambda output: output * 1, verbose=False
                )
            except Exception as error:  # of any kind: Torch-Pruning checks little
                notes = "; ".join(self.skipped) or "no attention that it can't follow is known"
                raise ValueError(
                    f"Expected a backbone whose channels can be followed, but Torch-Pruning fails on "
                    f"{type(clone).__name__} ({type(error).__name__}: {error}). Use another backbone, such as those in "
                    f"docs/coverage.md. What is known of this one: {notes}."
                ) from error

    def _trace_order(self, inputs: tuple[Tensor, ...]) -> dict[str, list[int]]:
        """Module name → when it is done in the forward pass, once for each call."""
        calls: dict[str, list[int]] = {}
        clock = iter(range(1 << 30))

        def note(module: nn.Module, *_: Any) -> None:
            calls.setdefault(self.names[module], []).append(next(clock))

        hooks = [m.register_forward_hook(note) for m in self.clone.modules()]
        with torch.no_grad():
            output = self.clone(*inputs)
        for hook in hooks:
            hook.remove()
        if not isinstance(output, Tensor):
            raise ValueError(f"Expected the backbone to return one tensor, but got {type(output).__name__}.")
        return calls

    def _index(self, item: Any, size: int, entries_there: int | None = None) -> np.ndarray:
        """(units, span) from Torch-Pruning's pairs of an entry and the root's unit that owns it."""
        name = self.names.get(item.dep.target.module, "output")
        if any(root is None for root in item.root_idxs):
            raise _Unsupported(f"the index map of `{name}` is not known")
        entries, roots = np.asarray(item.idxs, dtype=np.int64), np.asarray(item.root_idxs, dtype=np.int64)
        span = len(entries) // size
        if not np.array_equal(np.sort(roots), np.repeat(np.arange(size), span)):
            raise _Unsupported(f"its units own unequal parts of `{name}`")
        if len(np.unique(entries)) != len(entries) or (entries_there is not None and entries.max() >= entries_there):
            raise _Unsupported(f"the index map of `{name}` does not fit it")
        return entries[np.argsort(roots, kind="stable")].reshape(size, span)

    def _ends_in_norm(self, layer: nn.Module) -> bool:
        """Whether a producer's output goes to a batch norm and nowhere else."""
        outputs = self.graph.module2node[layer].outputs
        return len(outputs) == 1 and isinstance(outputs[0].module, _BatchNorm)

    def _is_factor(self, layer: nn.Module) -> bool:
        """Whether a sigmoid makes a producer's output a factor, as in squeeze-and-excitation."""
        ahead = list(self.graph.module2node[layer].outputs)
        for node in ahead:  # it grows
            if "igmoid" in str(node.name):
                return True
            if not isinstance(node.module, (nn.Conv2d, nn.Linear, _BatchNorm, tp.ops._OutputOp)):
                ahead += [output for output in node.outputs if output not in ahead]
        return False

    def _produces(self, item: Any) -> bool:
        return bool(self.graph.is_out_channel_pruning_fn(item.dep.handler))

    def _strand(self, layer: Any, outputs: bool = True) -> _Strand:
        """What Torch-Pruning couples to a layer's outputs, or inputs."""
        pruner = self.graph.get_pruner_of_module(layer)
        size = layer.weight.shape[0] if outputs else layer.in_channels
        prune = pruner.prune_out_channels if outputs else pruner.prune_in_channels
        try:
            return _Strand(size, list(self.graph.get_pruning_group(layer, prune, list(range(size)))))
        except Exception as error:  # whatever goes wrong in Torch-Pruning means that it can't follow the channels
            raise _Unsupported(f"Torch-Pruning can't follow its channels ({type(error).__name__}: {error})") from error

    def strands_of(self, layer: nn.Conv2d | nn.Linear) -> list[_Strand]:
        """The strand of a layer's outputs, and those that grouped convolutions tie to it by their other side."""
        strands = [self._strand(layer)]
        while True:
            sides = {
                (item.dep.target.module, self._produces(item))
                for strand in strands
                for item in strand.items
                if _conv_groups(item.dep.target.module) and not _is_depthwise(item.dep.target.module)
            }
            missing = sorted(
                ((module, not outputs) for module, outputs in sides if (module, not outputs) not in sides),
                key=lambda side: self.names[side[0]],
            )
            if not missing:
                return strands
            strands.append(self._strand(*missing[0]))

    def producers_of(self, strands: Sequence[_Strand]) -> list[str]:
        """Names of the layers whose outputs are the units, in forward order."""
        names = {
            self.names[item.dep.target.module]
            for strand in strands
            for item in strand.items
            if isinstance(item.dep.target.module, (nn.Conv2d, nn.Linear)) and self._produces(item)
        }
        return sorted(names, key=lambda name: self.calls[name][0])

    def _part(self, item: Any) -> tuple[Part, int | None]:
        """What an item does with the units, and how many entries there are of which units own some.

        Raises:
            _Unsupported: it can't be masked or cut exactly.
        """
        module: Any = item.dep.target.module
        if isinstance(module, tp.ops._OutputOp):
            return "features", None
        name = self.names[module]
        if len(self.calls.get(name, ())) != 1:
            raise _Unsupported(f"`{name}` is called {len(self.calls.get(name, ()))} times")
        if isinstance(module, _BatchNorm):
            return "norm", module.num_features
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            raise _Unsupported(f"`{name}` ({type(module).__name__}) mixes channels or can't be masked exactly")
        own = [parameter for parameter, _ in module.named_parameters() if parameter not in ("weight", "bias")]
        if own:
            raise _Unsupported(f"`{name}` ({type(module).__name__}) has a parameter of its own, `{own[0]}`")
        if not self._produces(item):
            return "consumer", module.weight.shape[1] * getattr(module, "groups", 1)
        if name in self.fixed:
            raise _Unsupported(f"`{name}` fixes the size")
        return "producer", module.weight.shape[0]

    def group_of(self, strands: Sequence[_Strand], names: list[str]) -> UnitGroup:
        """The group of units that the layers called ``names`` produce.

        Raises:
            _Unsupported: the group can't be masked or cut exactly.
        """
        found: list[tuple[Any, Part, np.ndarray, int]] = []
        blocks: dict[str, list[tuple[int, Labels]]] = {}
        for number, strand in enumerate(strands):
            for item in strand.items:
                module = item.dep.target.module
                if isinstance(module, nn.Parameter):
                    bare = next((n for n, p in self.clone.named_parameters() if p is module), "a parameter")
                    raise _Unsupported(f"`{bare}`, no layer's weight, is added to or scales these channels")
                if not isinstance(module, tp.ops._OutputOp) and not self.names.get(module):
                    continue  # an activation, addition, pooling or reshape: it owns nothing
                part, channels = self._part(item)
                index = self._index(item, strand.size, channels)
                conv_groups = _conv_groups(module)
                if conv_groups and channels is not None:
                    labels = block_labels(index, channels, conv_groups)
                    blocks.setdefault(self.names[module], []).append((number, labels))
                if part != "consumer" or not conv_groups:  # a grouped one has no axis of inputs that units could own
                    found.append((module, part, index, number))
        if len({(id(module), part) for module, part, _, _ in found}) != len(found):
            raise _Unsupported("a grouped convolution ties its channels to themselves")
        units = [np.arange(strand.size)[:, None] for strand in strands]
        if blocks:
            whole = joined([strand.size for strand in strands], list(blocks.values()))
            if whole is None or len(whole[0]) == 1:
                raise _Unsupported(f"the conv groups of `{next(iter(blocks))}` leave no units to choose from")
            units = whole
        size = len(units[0])
        parts = [(module, part, index[units[number]].reshape(size, -1)) for module, part, index, number in found]
        return self._record(parts, names, size)

    def _record(self, parts: list[tuple[Any, Part, np.ndarray]], names: list[str], size: int) -> UnitGroup:
        features = [index for _, part, index in parts if part == "features"]
        parts = [item for item in parts if item[1] != "features"]
        is_mlp = not features and self._is_mlp([module for module, _, _ in parts], names)
        ends_in_norm = {module for module, part, _ in parts if part == "producer" and self._ends_in_norm(module)}
        gated_norms = {self.graph.module2node[module].outputs[0].module for module in ends_in_norm}

        parts.sort(key=lambda item: (self.calls[self.names[item[0]]][0], item[1] == "consumer"))
        members = []
        for module, part, index in parts:
            prefix = self.names[module]
            if part == "norm":
                gate = module in gated_norms
                members += self._members(prefix, module, ("weight", "bias"), 0, index, "norm", gate)
                members += self._members(prefix, module, ("running_mean", "running_var"), 0, index, "statistic", False)
            elif part == "producer":
                gate = not is_mlp and module not in ends_in_norm and not self._is_factor(module)
                members += self._members(prefix, module, ("weight", "bias"), 0, index, "producer", gate)
            else:
                members += self._members(prefix, module, ("weight",), 1, index, "consumer", is_mlp)
        sources = self._sources(names)
        kind: Kind = "mlp" if is_mlp else "residual" if len(sources) > 1 else "conv"
        return UnitGroup(_group_name(sources, kind), kind, size, tuple(members), features[0] if features else None)

    def _sources(self, names: list[str]) -> list[str]:
        """The producers that begin units: no factors, and no grouped convolutions, which go on with them."""
        layers = {name: self.clone.get_submodule(name) for name in names}
        return [n for n in names if not _conv_groups(layers[n]) and not self._is_factor(layers[n])] or names

    def _is_mlp(self, layers: Sequence[Any], names: list[str]) -> bool:
        """Whether it is the hidden layer between two linear layers, or two 1×1 convolutions of a module called MLP."""
        if len(names) != 1 or len(layers) < 2:
            return False
        if all(isinstance(layer, nn.Linear) for layer in layers):
            return True
        owner = self.clone.get_submodule(names[0].rpartition(".")[0])
        return "mlp" in type(owner).__name__.lower() and all(
            isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) for layer in layers
        )

    @staticmethod
    def _members(
        prefix: str, module: nn.Module, attributes: Sequence[str], axis: int, index: np.ndarray, role: Role, gate: bool
    ) -> list[Member]:
        present = [name for name in attributes if getattr(module, name, None) is not None]
        return [Member(f"{prefix}.{name}".lstrip("."), axis, index, role, gate) for name in present]

    def find(self) -> Groups:
        """All groups in forward order, and notes on what was left out."""
        found: list[tuple[int, UnitGroup]] = []
        done: set[str] = set()
        layers = [(name, module) for name, module in self.clone.named_modules() if name in self.calls]
        for name, module in sorted(layers, key=lambda layer: self.calls[layer[0]][0]):
            if not isinstance(module, (nn.Conv2d, nn.Linear)) or name in done or name in self.fixed:
                continue
            if module not in self.graph.module2node:
                self.skipped.append(f"{name}: left out, the output does not depend on it")
                continue
            producers = [name]
            try:
                strands = self.strands_of(module)
                producers = self.producers_of(strands)
                group = self.group_of(strands, producers)
            except _Unsupported as reason:
                others = f" and {len(producers) - 1} layers coupled to it" if len(producers) > 1 else ""
                self.skipped.append(f"{name}{others}: left out, {reason}")
                continue
            finally:
                done.update(producers)
            found.append((self.calls[producers[0]][0], group))
        for name, attention in self.attention.items():
            found.append((self.calls[f"{name}.qkv".lstrip(".")][0], heads_group(name, attention)))
        return Groups(self._distinct([group for _, group in sorted(found, key=lambda pair: pair[0])]), self.skipped)

    def _distinct(self, groups: list[UnitGroup]) -> list[UnitGroup]:
        """Groups that would share a name are called by a smaller part of the backbone, or by their first layer."""
        names = [group.name for group in groups]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            alike = [i for i, other in enumerate(names) if other == name]
            layers = {i: _producers(groups[i]) for i in alike}
            smaller = {i: _group_name(self._sources(layers[i]), groups[i].kind, deeper=1) for i in alike}
            distinct = len(set(smaller.values())) == len(alike) and not set(smaller.values()) & set(names)
            for i in alike:
                names[i] = smaller[i] if distinct else f"{layers[i][0]}.{groups[i].kind}"
        return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def _refuse_partitions(backbone: nn.Module) -> None:
    """MaxViT cuts images into windows by reshapes through which Torch-Pruning's index maps grow without end."""
    for name, module in backbone.named_modules():
        if "PartitionAttention" in type(module).__name__:
            raise ValueError(
                f"Expected a backbone whose channels can be followed, but `{name}` ({type(module).__name__}) cuts "
                "images into windows on the way, as MaxViT does. Use another backbone, such as those in "
                "docs/coverage.md."
            )


def _producers(group: UnitGroup) -> list[str]:
    """The layers that produce a group's units, in forward order."""
    weights = [member.tensor for member in group.members if member.role == "producer"]
    return list(dict.fromkeys(tensor.rpartition(".")[0] for tensor in weights))


def _group_name(producers: list[str], kind: Kind, deeper: int = 0) -> str:
    """``layer1.residual`` by the stage of the last layer that adds to it, ``blocks.3.mlp``, or the layer's own name."""
    parts = producers[-1].split(".")
    if kind == "residual":
        stage = next((i for i, part in enumerate(parts) if i and part[-1].isdigit()), len(parts) - 1)
        if parts[stage].isdigit() and not parts[stage - 1][-1].isdigit():  # stages.1, where others say layer1
            stage += 1
        return ".".join([*parts[: stage + deeper], "residual"])
    if kind == "mlp" and len(parts) > 1 and not parts[-1].isdigit():
        return ".".join(parts[:-1])
    return producers[0]


def find_groups(backbone: nn.Module, example_input: Tensor | Sequence[Any], *, check: bool = True) -> Groups:
    """Find a backbone's groups of units.

    Convolution channels with their batch norms (those of a residual stage are one group), hidden neurons of MLPs, and
    whole attention heads. Of grouped and depthwise convolutions whole conv groups are units. What can't be masked
    exactly (channels under a LayerNorm or GroupNorm, other attention) is left out with a note in ``groups.skipped``; a
    timm classifier keeps its outputs. All work is done on a CPU copy: the backbone, its mode, hooks and gradients, and
    the global random state stay as they are. What was found is remembered for all backbones of the same structure,
    whatever their weights: see :mod:`lightning_mvp.backbones.groups_cache`.

    Args:
        backbone: maps a batch of images to one tensor, features on axis 1.
        example_input: images ``(N, C, H, W)`` or their shape; a tuple, for a backbone that takes several inputs.
        check: run the self-check once, at random masks of ratio 0.5.

    Returns:
        The groups in forward order; the same names in every process.

    Raises:
        ValueError: the example is no batch of images, the backbone returns no tensor, or nothing in it can be pruned.
        SelfCheckError: the self-check found a group whose zeroed and cut versions disagree; it is named.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> find_groups(net, torch.zeros(1, 3, 8, 8))
        Groups of 12 units:
          0: 8 units (conv)
          3: 4 units (conv)
    """
    inputs = one_sample(as_inputs(example_input), backbone)
    cache = GroupsCache(backbone, inputs)
    groups = cache.get(checked=check)
    if groups is not None:
        return groups
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        clone = cpu_copy(backbone, torch.float32)
        inputs = one_sample(inputs, clone)
        groups = cache.get(checked=False) or _Finder(clone, inputs).find()
    if not len(groups):
        raise ValueError(
            f"Expected a backbone with units that can be pruned, but {type(backbone).__name__} has none: "
            + ("; ".join(groups.skipped) or "no convolution, MLP or attention was found")
            + "."
        )
    if check:
        from lightning_mvp.backbones.masks import random_masks
        from lightning_mvp.backbones.selfcheck import check_exact

        check_exact(backbone, groups, random_masks(groups, 0.5, seed=0), inputs)
    cache.put(groups, checked=check)
    return groups
