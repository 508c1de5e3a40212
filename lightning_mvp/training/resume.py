"""What a checkpoint says of the module that wrote it, and whether another module can go on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from lightning_mvp.lightning_internals import SpawningLauncher


def require_same_model(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse the hyper-parameters of a checkpoint that is of another architecture or of other classes.

    Widths (the recipe's ``kept``) may differ: they are what a resumed module takes from its checkpoint.

    Args:
        own: ``recipe`` and ``facts`` of the module that is to resume, as plain dicts.
        saved: those of the checkpoint.

    Raises:
        ValueError: they differ; the message says in what.

    Example:
        >>> facts = {"name": "pets", "classes": ["cat", "dog"]}
        >>> own = {"recipe": {"model": "resnet18"}, "facts": facts}
        >>> require_same_model(own, {"recipe": {"model": "resnet18", "kept": {"layer1": 3}}, "facts": facts})
        >>> require_same_model(own, {"recipe": {"model": "resnet34"}, "facts": facts})
        Traceback (most recent call last):
        ...
        ValueError: Expected a checkpoint of this module's architecture, but the recipes differ in `model`: ...
    """
    mine, theirs = architecture(own["recipe"]), architecture(saved["recipe"])
    for key, value in mine.items():
        if value != theirs[key]:
            raise ValueError(
                f"Expected a checkpoint of this module's architecture, but the recipes differ in `{key}`: the module "
                f"has {value!r}, the checkpoint {theirs[key]!r}. Make the module with the checkpoint's recipe, or let "
                "load_from_checkpoint make it."
            )
    classes, other = list(own["facts"]["classes"]), list(saved["facts"]["classes"])
    if classes != other:
        raise ValueError(
            f"Expected a checkpoint of this module's classes, {_few(classes)}, but it was trained on {_few(other)}"
            f"{' in another order' if sorted(classes) == sorted(other) else ''}. Resume with the task that the "
            "checkpoint was trained on."
        )


def architecture(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe decides the dense model, with the defaults of ``create_backbone`` filled in.

    Example:
        >>> architecture({"model": "resnet18", "kept": {"layer1": 3}})
        {'model': 'resnet18', 'arguments': {'num_classes': 0}, 'replace': {}, 'in_chans': 3}
    """
    return {
        "model": recipe["model"],
        "arguments": {"num_classes": 0, **(recipe.get("arguments") or {})},
        "replace": dict(recipe.get("replace") or {}),
        "in_chans": recipe.get("in_chans", 3),
    }


def same_shapes(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """Whether two recipes are of one architecture at the same widths.

    Example:
        >>> same_shapes({"model": "resnet18"}, {"model": "resnet18", "kept": {"layer1": 3}})
        False
    """
    return (
        one is not None
        and architecture(one) == architecture(other)
        and (one.get("kept") or {}) == (other.get("kept") or {})
    )


def require_resizable(trainer: L.Trainer | None) -> None:
    """Refuse what can't bear that a module changes its widths when it restores a checkpoint.

    Raises:
        ValueError: the strategy restores weights when optimizers hold the old ones already (FSDP, DeepSpeed), or trains
            in spawned processes, whose weights would not fit the module in the process that spawned them.
    """
    if trainer is None:
        return
    why = None
    if trainer.strategy.restore_checkpoint_after_setup:
        why = "loads weights when its optimizers exist already"
    elif isinstance(trainer.strategy.launcher, SpawningLauncher) and trainer.training:
        why = "trains in spawned processes and copies the weights back into this module when they end"
    if why is not None:
        raise ValueError(
            f"Expected a module of the checkpoint's own widths, because {type(trainer.strategy).__name__} {why}. Make "
            "the module with load_from_checkpoint, then fit it from the same ckpt_path."
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Build on the CPU, in float32, and leave the random state as it was.

    Lightning calls ``configure_model`` with the Trainer's device and precision as defaults and moves the module
    afterwards anyway, and a module that rebuilds itself must not change what the run draws next.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _few(classes: list[str]) -> str:
    shown = ", ".join(map(repr, classes[:5]))
    return f"{shown} and {len(classes) - 5} more" if len(classes) > 5 else shown
