"""Who decides what several processes train, and how the others hear of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors.torch import load, save
from torch import Tensor, nn

from lightning_mvp.backbones.create import as_json
from lightning_mvp.turns import RANK_VARIABLES


def is_first_process() -> bool:
    """Whether this process is, as far as can be known before a process group exists, the one of global rank 0.

    Lightning reads the rank from the environment when it is imported. A node that Lightning itself starts processes on
    says in ``NODE_RANK`` only that it is not the first.
    """
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return _rank() == 0 and int(node) == 0


def rank_variables() -> str:
    """The environment's rank variables, for an error.

    Example:
        >>> import os
        >>> os.environ["LOCAL_RANK"] = "1"
        >>> "LOCAL_RANK=1" in rank_variables()
        True
        >>> del os.environ["LOCAL_RANK"]
    """
    said = [f"{name}={os.environ[name]}" for name in RANK_VARIABLES if name in os.environ]
    return ", ".join(said) or f"Lightning's rank_zero_only.rank={_rank()}"


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))


@dataclass(frozen=True)
class Decision:
    """All that makes a module what it is: what one process decided and the others build.

    Args:
        hparams: recipe, facts and report, and the options of training; plain JSON values.
        frozen: names of the parameters that are not trained.
        weights: the state dict, on the CPU.

    Example:
        >>> decision = Decision({"recipe": {"model": "resnet18"}}, ("a",), {"a": torch.arange(2.0)})
        >>> Decision.unpack(*decision.pack()).weights["a"]
        tensor([0., 1.])
    """

    hparams: dict[str, Any]
    frozen: tuple[str, ...]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, hparams: Mapping[str, Any]) -> Decision:
        """What a module is now; the weights are copies, each row-major and in memory of its own."""
        weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in module.state_dict().items()
        }
        return cls(as_json(hparams), frozen_parameters(module), weights)

    def pack(self) -> tuple[str, bytes]:
        """JSON text and safetensors bytes."""
        return json.dumps({"hparams": self.hparams, "frozen": self.frozen}), save(self.weights)

    @classmethod
    def unpack(cls, text: str, weights: bytes) -> Decision:
        """The inverse of :meth:`pack`."""
        said = json.loads(text)
        return cls(said["hparams"], tuple(said["frozen"]), load(weights))


def frozen_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters without gradient.

    Example:
        >>> frozen_parameters(nn.Linear(2, 2).requires_grad_(False))
        ('weight', 'bias')
    """
    return tuple(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


def freeze(module: nn.Module, names: tuple[str, ...]) -> None:
    """Let the named parameters, and no others, be without gradient."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)
