"""Finding groups, the self-check and surgery leave the given model, and the process, as they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import CostModel, Groups, check_exact, find_groups, random_masks, shrink

Act = Callable[[nn.Module, Groups, Tensor], Any]
ACTS: dict[str, Act] = {
    "find_groups": lambda model, groups, example: find_groups(model, example),
    "check_exact": lambda model, groups, example: check_exact(model, groups, random_masks(groups, 0.5, 0), example),
    "shrink": lambda model, groups, example: shrink(model, groups, random_masks(groups, 0.5, 0)),
    "CostModel": lambda model, groups, example: CostModel(model, groups, example),
}


def used_model(dtype: torch.dtype) -> nn.Module:
    """A model in the middle of somebody's work: frozen parts, parts in eval mode, gradients, dropout."""
    torch.manual_seed(0)
    model: Any = timm.create_model("mobilenetv3_small_050", num_classes=5, drop_rate=0.3)
    model.to(dtype).to(memory_format=torch.channels_last)
    model.train()
    model.blocks[1].eval()
    model.conv_stem.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    return model


def state_of(model: nn.Module) -> list[Any]:
    """All that must stay, in a form that can be compared."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return [
        [(name, id(tensor), tensor.dtype, tensor.stride(), tensor.requires_grad) for name, tensor in tensors.items()],
        [(name, tensor.detach().float().sum().item(), tensor._version) for name, tensor in tensors.items()],
        [(name, None if p.grad is None else p.grad.sum().item()) for name, p in model.named_parameters()],
        [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        [
            (name, [list(getattr(module, kind)) for kind in sorted(vars(module)) if kind.endswith("_hooks")])
            for name, module in model.named_modules()
        ],
        [(name, sorted(map(str, vars(module)))) for name, module in model.named_modules()],
    ]


def random_states() -> list[Any]:
    return [torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("act", ACTS)
def test_a_model_in_use_stays_as_it_was(act: str, dtype: torch.dtype) -> None:
    model, example = used_model(dtype), torch.randn(1, 3, 64, 64)
    groups = find_groups(used_model(dtype), example, check=False)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model.get_submodule("blocks.1").register_forward_pre_hook(lambda *_: calls.append("pre"))
    model.register_full_backward_hook(lambda *_: calls.append("backward"))
    before, chances = state_of(model), random_states()
    settings = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))

    ACTS[act](model, groups, example)

    assert state_of(model) == before
    assert random_states() == chances
    assert settings == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
    calls.clear()  # CostModel runs the model itself
    model(example.to(dtype).expand(2, -1, -1, -1)).float().sum().backward()
    assert calls == ["pre", "forward", "backward"]


@pytest.mark.parametrize("act", ["find_groups", "check_exact", "shrink"])
def test_the_users_hooks_fire_once_at_most(act: str) -> None:
    """Once, to see whether a copy without them computes the same; never in the copies."""
    model, example = used_model(torch.float32), torch.randn(1, 3, 64, 64)
    groups = find_groups(model, example, check=False)
    calls: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
        module.register_forward_pre_hook(lambda module, *_: calls.append(module))
    ACTS[act](model, groups, example)
    assert set(calls) <= set(model.modules())
    assert len(calls) == (2 * len(set(calls)) if act == "find_groups" else 0)


def test_groups_of_a_model_do_not_depend_on_its_dtype_mode_or_memory_format() -> None:
    plain = timm.create_model("mobilenetv3_small_050", num_classes=5)
    example = torch.randn(1, 3, 64, 64)
    assert find_groups(plain, example, check=False).sizes == find_groups(used_model(torch.bfloat16), example).sizes
