"""Read groups of units off the dependency graph of one traced copy of a backbone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_mvp.backbones.attention import attention_modules, heads_group, projections
from lightning_mvp.backbones.channel_sets import (
    ChannelSet,
    Item,
    Unsupported,
    channel_set_of,
    channels_of,
    dependency_graph,
)
from lightning_mvp.backbones.conv_groups import Labels, block_labels, conv_groups_of, is_depthwise, joined
from lightning_mvp.backbones.copies import without_checkpointing
from lightning_mvp.backbones.features import classifier_names
from lightning_mvp.backbones.group_names import distinct, group_name
from lightning_mvp.backbones.inputs import first_line, unfit_example
from lightning_mvp.backbones.outputs import AllOutputs
from lightning_mvp.backbones.torch_pruning_internals import OutputOp
from lightning_mvp.backbones.units import Groups, Kind, Member, Role, UnitGroup

Part = Literal["producer", "norm", "consumer", "features"]


class Tracer:
    """One traced copy of a backbone.

    Args:
        clone: a copy on the CPU that tracing may change.
        inputs: of one forward pass.

    Raises:
        ValueError: the copy does not take these inputs, or its graph can't be read.
    """

    def __init__(self, clone: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.clone = clone
        self.names = {module: name for name, module in clone.named_modules()}
        try:
            self.outputs = AllOutputs(clone, inputs)
        except Exception as error:  # whatever a forward pass raises
            raise unfit_example(clone, inputs, error) from error
        self.calls = self._trace_order(inputs)
        self.attention, self.skipped = attention_modules(clone)
        self.classifiers, self.projections = set(classifier_names(clone)), set(projections(clone))
        self.shared = _shared_tensors(clone)
        with torch.inference_mode(False), torch.enable_grad(), without_checkpointing():
            inputs = tuple(t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs)
            try:
                self.graph, self.unknown = dependency_graph(self.outputs, inputs)
            except Exception as error:  # of any kind: Torch-Pruning checks little
                notes = "; ".join(self.skipped) or "no attention that it can't follow is known"
                raise ValueError(
                    f"Expected a backbone whose channels can be followed, but Torch-Pruning fails on "
                    f"{type(clone).__name__} ({first_line(error)}). Use another backbone, such as those in "
                    f"docs/coverage.md. What is known of this one: {notes}."
                ) from error

    def _trace_order(self, inputs: tuple[Tensor, ...]) -> dict[str, list[int]]:
        """Module name → its place among all calls that end in the forward pass, once for each call of it."""
        calls: dict[str, list[int]] = {}
        clock = itertools.count()

        def note(module: nn.Module, *_: Any) -> None:
            calls.setdefault(self.names[module], []).append(next(clock))

        with torch.no_grad(), ExitStack() as hooks:
            for module in self.clone.modules():
                hooks.enter_context(module.register_forward_hook(note))
            self.outputs(*inputs)
        return calls

    # From sets of channels to groups ----------------------------------------------------------------------------------

    def _index(self, item: Item, size: int, entries_there: int | None) -> np.ndarray:
        """``(channels of the set, span)``: the entries of a module that each channel of a set owns."""
        name = self.names.get(item.module, "output")
        span = len(item.entries) // size
        if not np.array_equal(np.sort(item.units), np.repeat(np.arange(size), span)):
            raise Unsupported(f"its units own unequal parts of `{name}`")
        if entries_there is not None and item.entries.max() >= entries_there:
            raise Unsupported(f"the index map of `{name}` does not fit it")
        return item.entries[np.argsort(item.units, kind="stable")].reshape(size, span)

    def _ends_in_norm(self, layer: nn.Module) -> bool:
        """Whether a producer's output goes to a batch norm and nowhere else."""
        outputs = self.graph.module2node[layer].outputs
        return len(outputs) == 1 and isinstance(outputs[0].module, _BatchNorm)

    def _is_factor(self, layer: nn.Module) -> bool:
        """Whether a sigmoid turns a producer's output into factors of other channels, as in squeeze-and-excitation."""
        ahead = list(self.graph.module2node[layer].outputs)
        for node in ahead:  # the list grows while it is read
            if "igmoid" in str(node.name):
                return True
            if not isinstance(node.module, (_ConvNd, nn.Linear, _BatchNorm, OutputOp)):
                ahead += [output for output in node.outputs if output not in ahead]
        return False

    def _produces(self, item: Item) -> bool:
        return bool(self.graph.is_out_channel_pruning_fn(item.handler))

    def _set_of(self, layer: Any, outputs: bool = True) -> ChannelSet:
        try:
            return channel_set_of(self.graph, self.unknown, layer, outputs)
        except Unsupported:
            raise
        except Exception as error:  # whatever goes wrong in Torch-Pruning means that it can't follow the channels
            raise Unsupported(f"Torch-Pruning can't follow its channels ({first_line(error)})") from error

    def _sets_of(self, layer: nn.Module) -> list[ChannelSet]:
        """The set of a layer's outputs, and the sets that grouped convolutions tie to it.

        Where the inputs of a grouped convolution are in a set, its outputs must be in one, too, and vice versa.
        """
        sets = [self._set_of(layer)]
        while True:
            sides = {
                (item.module, self._produces(item))
                for each in sets
                for item in each.items
                if conv_groups_of(item.module) and not is_depthwise(item.module)
            }
            missing = sorted(
                ((module, not outputs) for module, outputs in sides if (module, not outputs) not in sides),
                key=lambda side: self.names[side[0]],
            )
            if not missing:
                return sets
            sets.append(self._set_of(*missing[0]))

    def _producers_of(self, items: Iterable[Item]) -> list[str]:
        """Names of the layers whose outputs are the units, in forward order."""
        producing = (item for item in items if isinstance(item.module, (_ConvNd, nn.Linear)) and self._produces(item))
        return sorted({self.names[item.module] for item in producing}, key=lambda name: self.calls[name][0])

    def _part(self, item: Item) -> tuple[Part, int | None]:
        """What an item does with the units, and how many entries the axis has of which they own some.

        Raises:
            Unsupported: it can't be masked or cut exactly.
        """
        module = item.module
        if isinstance(module, OutputOp):
            return self._output(int(item.entries.max()) + 1), None
        name = self.names[module]
        if name in self.shared:
            raise Unsupported(f"`{self.shared[name][0]}` and `{self.shared[name][1]}` share one tensor or module")
        if len(self.calls.get(name, ())) != 1:
            raise Unsupported(f"`{name}` is called {len(self.calls.get(name, ()))} times")
        if isinstance(module, _BatchNorm):
            return "norm", int(module.num_features)
        if not isinstance(module, (_ConvNd, nn.Linear)):
            raise Unsupported(f"`{name}` ({type(module).__name__}) mixes channels or can't be masked exactly")
        own = [parameter for parameter, _ in module.named_parameters() if parameter not in ("weight", "bias")]
        if own:
            raise Unsupported(f"`{name}` ({type(module).__name__}) has a parameter of its own, `{own[0]}`")
        if getattr(module, "transposed", False) and conv_groups_of(module):
            raise Unsupported(f"`{name}` ({type(module).__name__}) has conv groups")
        if not self._produces(item):
            return "consumer", channels_of(module, outputs=False)
        if name in self.classifiers | self.projections:
            raise Unsupported(f"`{name}` fixes the size")
        return "producer", channels_of(module, outputs=True)

    def _output(self, reached: int) -> Part:
        """The part of units that reach the output: its features, if it is one tensor with features on axis 1.

        Raises:
            Unsupported: the output is of another kind, so that nobody knows what reads these units.
        """
        if not self.outputs.plain:
            raise Unsupported("it is one of the backbone's outputs, and nobody knows who reads it")
        shape: Any = self.outputs.shapes[0]
        if len(shape) == 3 and (reached > shape[1] or shape[1] == shape[2]):
            raise Unsupported("it is the backbone's output, tokens, and nobody knows who reads it")
        return "features"

    def _group_of(self, sets: Sequence[ChannelSet], names: list[str]) -> UnitGroup:
        """The group of units that the layers called ``names`` produce.

        Raises:
            Unsupported: the group can't be masked or cut exactly.
        """
        found: list[tuple[Any, Part, np.ndarray, int]] = []
        blocks: dict[str, list[tuple[int, Labels]]] = {}
        for number, each in enumerate(sets):
            for item in each.items:
                module = item.module
                if isinstance(module, nn.Parameter):
                    bare = next((n for n, p in self.clone.named_parameters() if p is module), "a parameter")
                    raise Unsupported(f"`{bare}`, no layer's weight, is added to or scales these channels")
                if not isinstance(module, OutputOp) and not self.names.get(module):
                    continue  # an activation, addition, pooling or reshape has no entries
                part, channels = self._part(item)
                index = self._index(item, each.size, channels)
                conv_groups = conv_groups_of(module)
                if conv_groups and channels is not None:
                    labels = block_labels(index, channels, conv_groups)
                    blocks.setdefault(self.names[module], []).append((number, labels))
                # The weight of a grouped convolution has no axis of all its inputs, of which units could own entries.
                if part != "consumer" or not conv_groups:
                    found.append((module, part, index, number))
        if len({(id(module), part) for module, part, _, _ in found}) != len(found):
            raise Unsupported("a grouped convolution ties its channels to themselves")
        units = [np.arange(each.size)[:, None] for each in sets]
        if blocks:
            whole = joined([each.size for each in sets], list(blocks.values()))
            if whole is None or len(whole[0]) == 1:
                raise Unsupported(f"the conv groups of `{next(iter(blocks))}` leave no units to choose from")
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
            prefix, transposed = self.names[module], getattr(module, "transposed", False)
            if part == "norm":
                gate = module in gated_norms
                members += _members(prefix, module, ("weight", "bias"), 0, index, "norm", gate)
                members += _members(prefix, module, ("running_mean", "running_var"), 0, index, "statistic", False)
            elif part == "producer":
                gate = not is_mlp and module not in ends_in_norm and not self._is_factor(module)
                members += _members(prefix, module, ("weight",), int(transposed), index, "producer", gate)
                members += _members(prefix, module, ("bias",), 0, index, "producer", gate)
            else:
                members += _members(prefix, module, ("weight",), int(not transposed), index, "consumer", is_mlp)
        sources = self._sources(names)
        kind: Kind = "mlp" if is_mlp else "residual" if len(sources) > 1 else "conv"
        return UnitGroup(group_name(sources, kind), kind, size, tuple(members), features[0] if features else None)

    def _sources(self, names: list[str]) -> list[str]:
        """The producers that begin units; factors and grouped convolutions only continue those of other layers."""
        layers = {name: self.clone.get_submodule(name) for name in names}
        return [n for n in names if not conv_groups_of(layers[n]) and not self._is_factor(layers[n])] or names

    def _is_mlp(self, layers: Sequence[Any], names: list[str]) -> bool:
        """Whether the units are a hidden layer: between linear layers, or 1×1 convolutions of a module called MLP."""
        if len(names) != 1 or len(layers) < 2:
            return False
        if all(isinstance(layer, nn.Linear) for layer in layers):
            return True
        owner = self.clone.get_submodule(names[0].rpartition(".")[0])
        return "mlp" in type(owner).__name__.lower() and all(
            isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) for layer in layers
        )

    def find(self) -> Groups:
        """All groups in forward order, and notes on every layer with parameters that is in none."""
        found: list[tuple[int, UnitGroup]] = []
        done: set[str] = set()
        layers = [(name, module) for name, module in self.clone.named_modules() if name in self.calls]
        for name, module in sorted(layers, key=lambda layer: self.calls[layer[0]][0]):
            fixed = name in self.classifiers | self.projections
            if not isinstance(module, (_ConvNd, nn.Linear)) or name in done or fixed:
                continue
            producers = [name]
            try:
                if module not in self.graph.module2node:
                    raise Unsupported("the output does not depend on it")
                sets = self._sets_of(module)
                producers = self._producers_of(item for each in sets for item in each.items)
                group = self._group_of(sets, producers)
            except Unsupported as reason:
                # The other producers of the same units would be refused for the same reason.
                producers = self._producers_of(reason.items) or producers
                others = f" and {len(producers) - 1} layers coupled to it" if len(producers) > 1 else ""
                listed = f"; they are {', '.join(other for other in producers if other != name)}" if others else ""
                self.skipped.append(f"{name}{others}: left out, {reason}{listed}")
                continue
            finally:
                done.update(producers)
            found.append((self.calls[producers[0]][0], group))
        for name, module in layers:
            declared = getattr(module, "unit_groups", None)
            if callable(declared):  # a layer of a user's own may say itself which units it has
                found += [(self.calls[name][0], group) for group in declared(name)]
        for name, attention in self.attention.items():
            found.append((self.calls.get(f"{name}.qkv".lstrip("."), [0])[0], heads_group(name, attention)))
        groups = distinct([group for _, group in sorted(found, key=lambda pair: pair[0])], self._sources)
        return Groups(groups, [*self.skipped, *unaccounted(self.clone, groups, self.skipped, self._why_left)])

    def _why_left(self, name: str, module: nn.Module) -> str:
        """Why a layer is in no group, where nothing was said of it yet."""
        if name in self.classifiers:
            return "it is the classifier, whose outputs are the classes"
        if name in self.projections:
            return "its outputs are queries, keys and values, of whole heads"
        if name not in self.calls:
            return "the forward pass does not call it"
        return f"a {type(module).__name__} goes with the channels that it reads, which are left whole"


def unaccounted(
    backbone: nn.Module, groups: Sequence[UnitGroup], notes: Sequence[str], why: Callable[[str, nn.Module], str]
) -> list[str]:
    """One note for each reason why modules with parameters are in no group; those that notes name are passed over."""
    named = {word for note in notes for word in re.findall(r"[\w.]+", note)}
    owners = {member.tensor.rpartition(".")[0] for group in groups for member in group.members}
    left: dict[str, list[str]] = {}
    for name, module in backbone.named_modules():
        if name and name not in owners and name not in named and any(True for _ in module.parameters(recurse=False)):
            left.setdefault(why(name, module), []).append(name)
    return [f"{', '.join(names)}: left out, {reason}" for reason, names in left.items()]


def _shared_tensors(backbone: nn.Module) -> dict[str, tuple[str, str]]:
    """Module → two names of one of its parameters, where it has several: tied weights, modules registered twice."""
    first: dict[int, str] = {}
    shared: dict[str, tuple[str, str]] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            for owner in (name.rpartition(".")[0], other.rpartition(".")[0]):
                shared.setdefault(owner, (other, name))
    return shared


def _members(
    prefix: str, module: nn.Module, attributes: Sequence[str], axis: int, index: np.ndarray, role: Role, gate: bool
) -> list[Member]:
    present = [name for name in attributes if getattr(module, name, None) is not None]
    return [Member(f"{prefix}.{name}".lstrip("."), axis, index, role, gate) for name in present]
