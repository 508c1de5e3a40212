"""Which channels must be kept or removed together, by a walk through Torch-Pruning's dependency graph that ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import nn

from lightning_mvp.backbones import torch_pruning_internals as internals
from lightning_mvp.backbones.inputs import first_line

# How far the walk from one layer may go. Reshapes may multiply index maps so that it would never end. The largest
# networks of timm that can be followed take a hundredth of this.
MOST_ENTRIES = 1_000_000
MOST_ITEMS = 5_000
ENDLESS = "its channels pass through reshapes that can't be followed"


class Unsupported(Exception):
    """A group that can't be masked or cut exactly.

    Args:
        why: the reason, as the end of a sentence.
        items: what had been found of the group.
    """

    def __init__(self, why: str, items: Sequence[Item] = ()) -> None:
        super().__init__(why)
        self.items = items


@dataclass(frozen=True)
class Item:
    """The channels of one layer or operation that units own.

    Args:
        module: the layer, Torch-Pruning's module for an operation, or a parameter that is no layer's weight.
        handler: the method by which Torch-Pruning would remove them, which tells inputs from outputs.
        entries: int64, channels of the module.
        units: int64, for each of these channels the unit that owns it.
    """

    module: Any
    handler: Callable[..., Any]
    entries: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class ChannelSet:
    """Channels of a layer, with all that the dependency graph couples to them.

    Args:
        size: how many channels.
        items: the layers and operations that have some of them.
    """

    size: int
    items: list[Item]


def channel_set_of(graph: Any, unknown: Mapping[Any, str], layer: Any, outputs: bool) -> ChannelSet:
    """Follow a layer's channels to all that is coupled to them.

    It finds what Torch-Pruning's ``get_pruning_group`` finds, on arrays instead of lists of tuples, and always ends.

    Args:
        graph: Torch-Pruning's ``DependencyGraph``, with index maps.
        unknown: nodes through which channels can't be followed, and why not.
        layer: a convolution or linear layer of the graph.
        outputs: whether its outputs are followed; else its inputs are.

    Raises:
        Unsupported: the index maps grow without end, or are of an unknown kind.
    """
    pruner = graph.get_pruner_of_module(layer)
    size = channels_of(layer, outputs)
    units = np.arange(size)
    node = graph.module2node[layer]
    handler = pruner.prune_out_channels if outputs else pruner.prune_in_channels
    found = [Item(layer, handler, units, units)]
    seen = {_key(node, handler, units, units)}
    stack = [(node, handler, units, units)]
    entries_seen = 0
    while stack:
        node, handler, entries, units = stack.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(handler):
                continue
            there, owners = entries, units
            for mapping in dependency.index_mapping:
                if mapping is not None:
                    there, owners = _mapped(mapping, there, owners)
            key = _key(dependency.target, dependency.handler, there, owners)
            if not len(there) or key in seen:
                continue
            seen.add(key)
            entries_seen += len(there)
            if entries_seen > MOST_ENTRIES or len(seen) > MOST_ITEMS:
                raise Unsupported(ENDLESS, found)
            if dependency.target in unknown:
                raise Unsupported(unknown[dependency.target], found)
            found.append(Item(dependency.target.module, dependency.handler, there, owners))
            stack.append((dependency.target, dependency.handler, there, owners))
    return ChannelSet(size, _merged(found))


def channels_of(layer: Any, outputs: bool) -> int:
    """How many channels a convolution or linear layer gives, or takes."""
    if isinstance(layer, nn.Linear):
        return int(layer.out_features if outputs else layer.in_features)
    return int(layer.out_channels if outputs else layer.in_channels)


def _key(node: Any, handler: Any, entries: np.ndarray, units: np.ndarray) -> tuple[Any, ...]:
    return (id(node), handler, entries.tobytes(), units.tobytes())


def _mapped(mapping: Any, entries: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries on the other side of an operation, and the units that own them."""
    kind, back = type(mapping), mapping.reverse
    if kind is internals.Flatten:
        stride = internals.stride_of(mapping)
        if back:
            pairs = np.unique(np.stack([entries // stride, units], axis=1), axis=0)
            return pairs[:, 0], pairs[:, 1]
        if len(entries) * stride > MOST_ENTRIES:
            raise Unsupported(ENDLESS)
        return (entries[:, None] * stride + np.arange(stride)).ravel(), np.repeat(units, stride)
    if kind in (internals.Concat, internals.Split):
        first, last = mapping.offset[:2]
        if back == (kind is internals.Split):
            return entries + first, units
        inside = (entries >= first) & (entries < last)
        return entries[inside] - first, units[inside]
    if kind is internals.Slice:
        if back:
            return entries * mapping.step + mapping.start, units
        offset = entries - mapping.start
        inside = (offset >= 0) & (entries < mapping.end) & (offset % mapping.step == 0)
        return offset[inside] // mapping.step, units[inside]
    raise Unsupported(f"its channels pass through a {kind.__name__.strip('_')}, which is not understood")


def _merged(items: list[Item]) -> list[Item]:
    """One item for the inputs and one for the outputs of each layer; an entry found twice is its first owner's."""
    sides: dict[tuple[int, Any], list[Item]] = defaultdict(list)
    for item in items:
        sides[id(item.module), item.handler].append(item)
    merged = []
    for parts in sides.values():
        entries = np.concatenate([part.entries for part in parts])
        units = np.concatenate([part.units for part in parts])
        _, first = np.unique(entries, return_index=True)
        first.sort()
        merged.append(Item(parts[0].module, parts[0].handler, entries[first], units[first]))
    return merged


class _OneNode:
    """A dependency graph that shows Torch-Pruning's functions one node only."""

    def __init__(self, graph: Any, module: Any, node: Any) -> None:
        self.graph, self.module2node = graph, {module: node}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)


def dependency_graph(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, dict[Any, str]]:
    """Torch-Pruning's graph of a model, with all index maps that it can make.

    Args:
        model: returns a list of tensors.
        inputs: of one forward pass. Floating-point inputs require gradients, because the graph is read off autograd's.

    Returns:
        The graph, and for each node whose index map can't be made the reason.

    Raises:
        Exception: of any kind, where the model can't be traced.
    """
    graph = tp.DependencyGraph()
    turns = 1  # how often index maps are made: a concatenation knows its sizes only the second time
    try:
        # Multiplying by one adds an operation. Without it Torch-Pruning would not see that a layer's output is the
        # backbone's output, too.
        graph.build_dependency(
            model, inputs, output_transform=lambda outputs: [output * 1 for output in outputs], verbose=False
        )
    except Exception:
        if not any(node.dependencies for node in getattr(graph, "module2node", {}).values()):
            raise  # nothing was traced; else only its last step failed, which is repeated below, node by node
        turns = 2
    unknown: dict[Any, str] = {}
    for _ in range(turns):
        unknown = {}
        for module, node in graph.module2node.items():
            try:
                one = _OneNode(graph, module, node)
                internals.init_shape_information(one)
                internals.update_index_mapping(one)
            except Exception as error:  # of any kind: Torch-Pruning checks little
                kind = type(module).__name__.strip("_")
                unknown[node] = f"Torch-Pruning can't follow channels through a {kind} ({first_line(error)})"
    return graph, unknown
