"""One hash of everything that a backbone's forward pass depends on but its weights.

Two backbones of the same hash have the same groups of units.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_mvp.backbones.copies import HOOKS

# The code of these libraries is hashed by its version, all other code by itself.
VERSIONED = {
    "torch": "torch",
    "timm": "timm",
    "torchvision": "torchvision",
    "torch_pruning": "torch-pruning",
    "numpy": "numpy",
}
# Attributes that torch keeps in every module. They say nothing of its forward pass, or are described elsewhere.
_INTERNAL = frozenset(
    {"training", "_parameters", "_buffers", "_modules", "_version", "_compiled_call_impl", "call_super_init"}
) | {name for name in vars(nn.Module()) if name.startswith("_")}
# A hook may refer to anything, even to a whole Trainer: objects that are nested deeper or are larger are not described.
_DEPTH, _VALUES = 24, 200_000


@dataclasses.dataclass(frozen=True)
class Structure:
    """What :func:`structure_of` found.

    Args:
        key: 64 hexadecimal digits.
        portable: whether all code of the backbone is that of released libraries, so that the key means the same in
            another process on another day.
    """

    key: str
    portable: bool


class _Unknown(Exception):
    """Something that can't be described by value."""


def structure_of(backbone: nn.Module, inputs: Sequence[Tensor]) -> Structure | None:
    """Hash what the forward pass depends on: classes and their code, attributes, hooks, tied names, shapes, versions.

    Weights and batch-norm statistics don't count, nor do dtype, device and training mode. All other buffers do.

    Args:
        backbone: any module; not changed.
        inputs: of one forward pass. Of images only the shape of one sample counts.

    Returns:
        The structure, or None where an attribute can't be described by its value, so that no other backbone is known
        to be the same.

    Example:
        >>> from torch import nn
        >>> images = (torch.zeros(1, 3, 8, 8),)
        >>> one, two = (structure_of(nn.Conv2d(3, 4, 3, padding=1), images) for _ in range(2))
        >>> one == two, one == structure_of(nn.Conv2d(3, 4, 3), images)
        (True, False)
    """
    describer = _Describer(backbone)
    try:
        described = [describer.backbone(backbone), [describer.input(tensor) for tensor in inputs], _environment()]
        text = json.dumps(described, separators=(",", ":"))
    except (_Unknown, RecursionError):
        return None
    return Structure(hashlib.sha256(text.encode()).hexdigest(), describer.portable)


@functools.cache
def _environment() -> list[str]:
    """Versions of the libraries, and a hash of our own code, which changes more often than its version."""
    versions = [f"{name} {importlib.metadata.version(package)}" for name, package in VERSIONED.items()]
    own = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        own.update(path.read_bytes())
    return [*versions, own.hexdigest()]


class _Describer:
    """Turns values into nested lists for JSON. It remembers what it has seen, so that circular references end."""

    def __init__(self, backbone: nn.Module) -> None:
        self.portable = True
        self.modules = {id(module): name for name, module in backbone.named_modules()}
        self.code: dict[int, str] = {}
        self.open: set[int] = set()
        self.count = 0

    def backbone(self, backbone: nn.Module) -> list[Any]:
        tensors: dict[int, str] = {}
        described = []
        for name, module in backbone.named_modules(remove_duplicate=False):
            first = self.modules[id(module)]
            if name != first:
                described.append([name, "is", first])
                continue
            own: list[Any] = [name, self.type(type(module))]
            for kind, found in (("parameter", module._parameters), ("buffer", module._buffers)):
                for tensor_name, tensor in found.items():
                    full = f"{name}.{tensor_name}"
                    owner = None if tensor is None else tensors.setdefault(id(tensor), full)
                    shape = None if tensor is None else list(tensor.shape)
                    own.append([kind, tensor_name, None if owner == full else owner, shape])
                    if kind == "buffer" and tensor is not None and not isinstance(module, _BatchNorm):
                        own.append(self.values(tensor))
            own.append([[key, self.value(value)] for key, value in vars(module).items() if key not in _INTERNAL])
            own.append([[self.value(hook) for hook in vars(module).get(kind, {}).values()] for kind in HOOKS])
            described.append(own)
        return described

    def input(self, tensor: Tensor) -> list[Any]:
        return [list(tensor.shape[1:]), True if tensor.is_floating_point() else self.values(tensor[:1])]

    @staticmethod
    def values(tensor: Tensor) -> list[Any]:
        content = tensor.detach().cpu().contiguous()
        if content.dtype == torch.bfloat16:
            content = content.float()
        return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(content.numpy().tobytes()).hexdigest()]

    def value(self, value: Any) -> Any:
        """An attribute, described by its value.

        Raises:
            _Unknown: that can't be done.
        """
        if value is None or isinstance(value, (bool, int, float, str, bytes, complex, slice, range, type(Ellipsis))):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout, np.generic, np.dtype)):
            return str(value)
        if isinstance(value, type):
            return self.type(value)
        if isinstance(value, nn.Module) and id(value) in self.modules:
            return ["module", self.modules[id(value)]]
        if isinstance(value, Tensor):
            return self.values(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        self.count += 1
        if id(value) in self.open or len(self.open) > _DEPTH or self.count > _VALUES:
            raise _Unknown
        self.open.add(id(value))
        try:
            return self._composed(value)
        finally:
            self.open.remove(id(value))

    def _composed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return [type(value).__name__, [[self.value(key), self.value(item)] for key, item in value.items()]]
        if isinstance(value, (list, tuple)):
            return [type(value).__name__, *(self.value(item) for item in value)]
        if isinstance(value, (set, frozenset)):
            return [type(value).__name__, *sorted(json.dumps(self.value(item)) for item in value)]
        if isinstance(value, enum.Enum):
            return [self.type(type(value)), value.name]
        if isinstance(value, functools.partial):
            return ["partial", self.value(value.func), self.value(value.args), self.value(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.value(value.__func__), self.value(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.BuiltinFunctionType):
            return ["builtin", value.__module__, value.__qualname__]
        if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
            raise _Unknown  # a module outside of the backbone has weights of its own, which may change
        return [self.type(type(value)), [[key, self.value(item)] for key, item in vars(value).items()]]

    def type(self, kind: type) -> Any:
        """A class: its name and, if it is of no versioned library, the code of its methods."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if self._is_versioned(kind.__module__) or kind.__module__ == "builtins":
            return name
        self.portable = False
        if id(kind) not in self.code:
            self.code[id(kind)] = name  # for now, since methods may name their own class
            described: list[Any] = []
            for base in kind.__mro__:
                if base is object or self._is_versioned(base.__module__):
                    described.append(f"{base.__module__}.{base.__qualname__}")
                    continue
                for attribute, value in vars(base).items():
                    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
                    if isinstance(function, types.FunctionType):
                        described.append([attribute, self.function(function)])
                    elif not attribute.startswith("__") and isinstance(value, (bool, int, float, str, tuple)):
                        described.append([attribute, self.value(value)])
            text = json.dumps(described, default=str)
            self.code[id(kind)] = f"{name} {hashlib.sha256(text.encode()).hexdigest()}"
        return self.code[id(kind)]

    def function(self, function: types.FunctionType) -> Any:
        """A function: its name and, if it is of no versioned library, its code and that of the functions it calls."""
        name = f"{function.__module__}.{function.__qualname__}"
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        if self._is_versioned(function.__module__):
            return [name, *(self.value(cell) for cell in cells)]
        self.portable = False
        if id(function) not in self.code:
            self.code[id(function)] = name
            described: list[Any] = [
                _code(function.__code__),
                repr(function.__defaults__),
                repr(function.__kwdefaults__),
            ]
            for called in _names(function.__code__):
                found = function.__globals__.get(called)
                if isinstance(found, types.FunctionType):
                    described.append([called, self.function(found)])
                elif isinstance(found, (bool, int, float, str, tuple, type)):
                    described.append([called, self.value(found)])
            text = json.dumps(described)
            self.code[id(function)] = f"{name} {hashlib.sha256(text.encode()).hexdigest()}"
        return [self.code[id(function)], *(self._cell(cell) for cell in cells)]

    def _cell(self, value: Any) -> Any:
        """A value of a function's closure. A class is there for ``super()``, and is described already."""
        return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else self.value(value)

    @staticmethod
    def _is_versioned(module: str | None) -> bool:
        return (module or "").partition(".")[0] in {*VERSIONED, "lightning_mvp"}


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(each) if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function, or one inside it, may look up."""
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each)]
    return list(dict.fromkeys([*code.co_names, *inner]))
