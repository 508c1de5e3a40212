"""Find the units of a backbone: which tensor entries stand and fall together.

Channels and MLP neurons come from Torch-Pruning's dependency graph (its only use here), whole attention heads from
our own reading of timm's attention. Both end in the records of :mod:`lightning_mvp.backbones.units`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from lightning_mvp.backbones.features import classifier_name
from lightning_mvp.backbones.units import Groups, Kind, Member, Role, UnitGroup

__all__ = ["Groups", "Kind", "Member", "Role", "UnitGroup", "attention_modules", "find_groups"]


class _Unsupported(Exception):
    """A group that can't be masked or cut exactly; the message says why."""


def _first_input(example_input: Tensor | Sequence[Any]) -> Tensor:
    example = example_input[0] if isinstance(example_input, (list, tuple)) and example_input else example_input
    if not isinstance(example, Tensor) or example.ndim < 2:
        raise ValueError(
            "Expected argument `example_input` to be a batch of images, a tensor of shape (N, C, H, W), but got "
            f"{type(example).__name__}."
        )
    return example


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


def attention_modules(backbone: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """timm attention whose heads can be cut: fused ``qkv``, then ``proj``, and no other parameter that knows of heads.

    Returns:
        Name → module, and notes on the attention that is left out.
    """
    found: dict[str, Any] = {}
    notes = []
    for name, module in backbone.named_modules():
        qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
        if not isinstance(qkv, nn.Module):
            continue
        heads, head_dim = getattr(module, "num_heads", None), getattr(module, "head_dim", None)
        allowed = {"qkv", "proj", "q_norm", "k_norm"}
        others = sorted({p for p, _ in module.named_parameters() if p.split(".")[0] not in allowed})
        if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or not heads or not head_dim:
            notes.append(f"{name}: heads left out, {type(module).__name__} is not timm's attention of qkv and proj")
        elif qkv.out_features != 3 * heads * head_dim or proj.in_features != heads * head_dim:
            notes.append(f"{name}: heads left out, qkv and proj are not num_heads x head_dim wide")
        elif others:
            notes.append(f"{name}: heads left out, `{others[0]}` depends on the heads too")
        else:
            found[name] = module
    return found, notes


def _heads_group(name: str, attention: Any) -> UnitGroup:
    heads, dim = attention.num_heads, attention.head_dim
    prefix = f"{name}." if name else ""
    columns = np.arange(heads * dim).reshape(heads, dim)
    rows = np.concatenate([columns + part * heads * dim for part in range(3)], axis=1)  # of q, of k, of v
    members = [Member(f"{prefix}qkv.weight", 0, rows, "producer")]
    if attention.qkv.bias is not None:
        members.append(Member(f"{prefix}qkv.bias", 0, rows, "producer"))
    members.append(Member(f"{prefix}proj.weight", 1, columns, "consumer", gate=True))
    return UnitGroup(f"{prefix}heads", "heads", heads, tuple(members))


class _Finder:
    """Reads groups off Torch-Pruning's graph of one traced copy of a backbone."""

    def __init__(self, clone: nn.Module, example: Tensor) -> None:
        self.clone = clone
        self.names = {module: name for name, module in clone.named_modules()}
        self.calls = self._trace_order(example)
        self.attention, self.skipped = attention_modules(clone)
        classifier = classifier_name(clone)
        self.fixed = {f"{name}.qkv".lstrip(".") for name in self.attention} | ({classifier} if classifier else set())
        with torch.inference_mode(False), torch.enable_grad():
            # The input must require a gradient: the graph is read off autograd's. A tuple: a bare batch is taken apart.
            inputs = (example.detach().clone().requires_grad_(),)
            # Times one: where a layer's own output is returned, Torch-Pruning would not see that it is the output.
            self.graph = tp.DependencyGraph().build_dependency(
                clone, inputs, output_transform=lambda output: output * 1, verbose=False
            )

    def _trace_order(self, example: Tensor) -> dict[str, list[int]]:
        """Module name → when it is done in the forward pass, once for each call."""
        calls: dict[str, list[int]] = {}
        clock = iter(range(1 << 30))

        def note(module: nn.Module, *_: Any) -> None:
            calls.setdefault(self.names[module], []).append(next(clock))

        hooks = [m.register_forward_hook(note) for m in self.clone.modules()]
        with torch.no_grad():
            output = self.clone(example)
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

    def items_of(self, root: nn.Conv2d | nn.Linear) -> list[Any]:
        """What Torch-Pruning couples to the layer's outputs."""
        prune = self.graph.get_pruner_of_module(root).prune_out_channels
        return list(self.graph.get_pruning_group(root, prune, list(range(root.weight.shape[0]))))

    def producers_of(self, items: Sequence[Any]) -> list[str]:
        """Names of the layers whose outputs are the units, in forward order."""
        names = {
            self.names[item.dep.target.module]
            for item in items
            if isinstance(item.dep.target.module, (nn.Conv2d, nn.Linear))
            and self.graph.is_out_channel_pruning_fn(item.dep.handler)
        }
        return sorted(names, key=lambda name: self.calls[name][0])

    def group_of(self, items: Sequence[Any], names: list[str], size: int) -> UnitGroup:
        """The group of ``size`` units that the layers called ``names`` produce.

        Raises:
            _Unsupported: the group can't be masked or cut exactly.
        """
        gated_norms: set[nn.Module] = set()
        parts: list[tuple[nn.Module, str, np.ndarray]] = []
        feature_index = None
        for item in items:
            module, handler = item.dep.target.module, item.dep.handler
            name = self.names.get(module, "")
            if isinstance(module, tp.ops._OutputOp):
                feature_index = self._index(item, size)
            elif isinstance(module, nn.Parameter):
                raise _Unsupported("a bare parameter of the model is added to or scales these channels")
            elif not name:
                continue  # an activation, addition, pooling or reshape: it owns nothing
            elif len(self.calls.get(name, ())) != 1:
                raise _Unsupported(f"`{name}` is called {len(self.calls.get(name, ()))} times")
            elif isinstance(module, _BatchNorm):
                parts.append((module, "norm", self._index(item, size, module.num_features)))
            elif not isinstance(module, (nn.Conv2d, nn.Linear)):
                raise _Unsupported(f"`{name}` ({type(module).__name__}) mixes channels or can't be masked exactly")
            elif getattr(module, "groups", 1) != 1:
                raise _Unsupported(f"`{name}` is a grouped convolution")
            elif self.graph.is_out_channel_pruning_fn(handler):
                if name in self.fixed:
                    raise _Unsupported(f"`{name}` fixes the size")
                parts.append((module, "producer", self._index(item, size, module.weight.shape[0])))
                if self._ends_in_norm(module):
                    gated_norms.add(self.graph.module2node[module].outputs[0].module)
            else:
                parts.append((module, "consumer", self._index(item, size, module.weight.shape[1])))
        is_mlp = len(names) == 1 and all(isinstance(module, nn.Linear) for module, _, _ in parts)
        is_mlp = is_mlp and feature_index is None and len(parts) > 1

        parts.sort(key=lambda part: (self.calls[self.names[part[0]]][0], part[1] == "consumer"))
        members = []
        for module, role, index in parts:
            prefix = self.names[module]
            if role == "norm":
                gate = module in gated_norms
                members += self._members(prefix, module, ("weight", "bias"), 0, index, "norm", gate)
                members += self._members(prefix, module, ("running_mean", "running_var"), 0, index, "statistic", False)
            elif role == "producer":
                gate = not is_mlp and not self._ends_in_norm(module)
                members += self._members(prefix, module, ("weight", "bias"), 0, index, "producer", gate)
            else:
                members += self._members(prefix, module, ("weight",), 1, index, "consumer", is_mlp)
        kind: Kind = "mlp" if is_mlp else "residual" if len(names) > 1 else "conv"
        return UnitGroup(_group_name(names, kind), kind, size, tuple(members), feature_index)

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
            items = self.items_of(module)
            producers = self.producers_of(items)
            done.update(producers)
            try:
                group = self.group_of(items, producers, module.weight.shape[0])
            except _Unsupported as reason:
                others = f" and {len(producers) - 1} layers coupled to it" if len(producers) > 1 else ""
                self.skipped.append(f"{name}{others}: left out, {reason}")
                continue
            found.append((self.calls[producers[0]][0], group))
        for name, attention in self.attention.items():
            found.append((self.calls[f"{name}.qkv".lstrip(".")][0], _heads_group(name, attention)))
        return Groups(_distinct([group for _, group in sorted(found, key=lambda pair: pair[0])]), self.skipped)


def _group_name(producers: list[str], kind: Kind) -> str:
    """``layer1.residual`` by the stage of the last layer that adds to it, ``blocks.3.mlp``, or the layer's own name."""
    parts = producers[-1].split(".")
    if kind == "residual":
        stage = next((i for i, part in enumerate(parts) if i and part.isdigit()), len(parts) - 1)
        return ".".join([*parts[:stage], "residual"])
    if kind == "mlp" and len(parts) > 1 and not parts[-1].isdigit():
        return ".".join(parts[:-1])
    return producers[0]


def _distinct(groups: list[UnitGroup]) -> list[UnitGroup]:
    """Where two groups would share a name, each is called by its first producer instead."""
    names = [group.name for group in groups]
    return [
        group
        if names.count(group.name) == 1
        else UnitGroup(
            f"{next(m.tensor for m in group.members if m.role == 'producer').removesuffix('.weight')}.{group.kind}",
            group.kind,
            group.size,
            group.members,
            group.feature_index,
        )
        for group in groups
    ]


def find_groups(backbone: nn.Module, example_input: Tensor | Sequence[Any], *, check: bool = True) -> Groups:
    """Find a backbone's groups of units.

    Convolution channels with their batch norms (those of a residual stage are one group), hidden neurons of MLPs, and
    whole attention heads. What can't be masked exactly (channels under a LayerNorm or GroupNorm, grouped convolutions,
    other attention) is left out with a note in ``groups.skipped``; a timm classifier keeps its outputs. All work is
    done on a CPU copy: the backbone, its mode, hooks and gradients, and the global random state stay as they are.

    Args:
        backbone: maps a batch of images to one tensor, features on axis 1.
        example_input: images ``(N, C, H, W)``, or a tuple that starts with them; only the shape matters.
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
    example = _first_input(example_input)[:1].detach().to("cpu", torch.float32)
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        groups = _Finder(cpu_copy(backbone, torch.float32), example).find()
    if not len(groups):
        raise ValueError(
            f"Expected a backbone with units that can be pruned, but {type(backbone).__name__} has none: "
            + ("; ".join(groups.skipped) or "no convolution, MLP or attention was found")
            + "."
        )
    if check:
        from lightning_mvp.backbones.masks import random_masks
        from lightning_mvp.backbones.selfcheck import check_exact

        check_exact(backbone, groups, random_masks(groups, 0.5, seed=0), example)
    return groups
