"""The physically small model of a pruned module, or of a checkpoint of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_mvp.backbones.groups import Groups, find_groups
from lightning_mvp.backbones.inputs import as_inputs, one_sample
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.small_head import small_head
from lightning_mvp.backbones.surgery import shrink, without_sync
from lightning_mvp.callbacks.resolve import check_head, example_inputs, resolve_module
from lightning_mvp.pruning.zeros import require_zeroed


def cut(
    backbone: nn.Module, head: nn.Module | None, groups: Groups, masks: Masks, example: tuple[Tensor, ...]
) -> nn.Module:
    """The small backbone, followed by the small head if there is one: on the CPU, in eval mode."""
    small = shrink(backbone, groups, masks).cpu().eval()
    small = without_sync(small, one_sample(example, small)).eval()
    if head is None:
        return small
    assert isinstance(head, nn.Linear), "it was checked before training"
    return nn.Sequential(small, small_head(head, groups, masks)).eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds other things than tensors and plain containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path}, but there is no such file.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file may raise anything
        foreign = re.search(r"Unsupported (?:global|class).*", str(error))
        why = (
            "it is damaged, or something else"
            if foreign is None
            else f"it holds other objects ({foreign[0][:200]}). If you trust it, load it yourself with "
            "weights_only=False, and hand what torch.load gives to MVPCallback.small_model_from"
        )
        raise ValueError(f"Expected a checkpoint of tensors and plain containers at {path}, but {why}.") from error
    if not isinstance(saved, dict) or "state_dict" not in saved:
        raise ValueError(f"Expected a checkpoint of Lightning's at {path}, but it has no `state_dict`.")
    return saved


def pruning_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of a checkpoint's `MVPCallback`, if it has one."""
    states = (checkpoint.get("callbacks") or {}).values()
    known = {"settings", "pruner"}  # its key is no help, because the callback may be of a subclass
    return next((state for state in states if isinstance(state, Mapping) and known <= state.keys()), None)


def small_model_from(
    checkpoint: str | Path | Mapping[str, Any],
    module: L.LightningModule,
    example_input: Any = None,
    backbone: str | None = None,
    head: str | None = None,
) -> nn.Module:
    """See :meth:`MVPCallback.small_model_from <lightning_mvp.callbacks.state.PruningState.small_model_from>`."""
    named = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the checkpoint"
    saved = read_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    state = pruning_state(saved)
    if state is None:
        raise ValueError(
            f"Expected a checkpoint of a run with MVPCallback, but {named} has no state of one. Take one that was "
            "written while it was in the Trainer, and not with save_weights_only."
        )
    pruner, rounds = state["pruner"] or {}, state["settings"]["rounds"]
    if pruner.get("round", 0) < rounds:
        raise ValueError(
            f"Expected a checkpoint of finished pruning, but {pruner.get('round', 0)} of {rounds} rounds had happened "
            f"when {named} was written. Take a later one, or resume the run from it with ckpt_path."
        )
    backbone, head = backbone or state.get("backbone"), head or state.get("head")
    if backbone is None:
        raise ValueError(
            f"Expected argument `backbone` to be given, because {named} is of an older version and doesn't name it. "
            "Pass the dotted name that MVPCallback had, and that of `head`, too."
        )
    _load(module, saved, named)
    own, linear = resolve_module(module, backbone, "backbone"), None
    example = _example(example_input, pruner, module)
    if head is not None:
        linear = resolve_module(module, head, "head")
        check_head(module, own, linear, example, None)
    groups, kept = find_groups(own, example), Masks(pruner["masks"])
    for name, mask in kept.items():
        if name not in groups or groups[name].size != len(mask):
            there = f"{groups[name].size} units" if name in groups else f"no such group, but {', '.join(groups.names)}"
            raise ValueError(
                f"Expected a backbone `{backbone}` with the groups that {named} was pruned by, such as `{name}` of "
                f"{len(mask)} units, but it has {there}. Make the module as the one that was trained was made."
            )
    masks = Masks({**Masks.full(groups), **kept})
    require_zeroed(own, groups, masks)
    return cut(own, linear, groups, masks, example)


def _load(module: L.LightningModule, saved: Mapping[str, Any], named: str) -> None:
    """Load the checkpoint's weights into the module, with its hooks called, as by ``load_from_checkpoint``."""
    if is_overridden("configure_model", module):
        module.configure_model()
    module.on_load_checkpoint(dict(saved))
    try:
        module.load_state_dict(saved["state_dict"], strict=module.strict_loading)
    except RuntimeError as error:
        raise ValueError(
            f"Expected a {type(module).__name__} that the weights of {named} fit, but they don't. Make the module as "
            f"the one that was trained was made. {error}"
        ) from error


def _example(given: Any, pruner: Mapping[str, Any], module: L.LightningModule) -> tuple[Tensor, ...]:
    """The example that is given, else zeros of the shapes in the checkpoint, else the module's own example."""
    if given is None and "inputs" in pruner:
        return tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in pruner["inputs"])
    example = example_inputs(None if given is None else as_inputs(given), module)
    if example is None:
        raise ValueError(
            "Expected argument `example_input` to be a batch of images or its shape, but got None; the checkpoint is "
            "of an older version and the module has no `example_input_array`."
        )
    return example
