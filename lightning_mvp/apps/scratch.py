"""The `mvp-prune` command that prunes a vote's task from scratch, with the zoo's backbone and weights."""

from __future__ import annotations

import json
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

# The overrides that choose the task and its training. Those of the vote are left out.
TASK = re.compile(r"[+~]*(data|split|optim|trainer|strategy|seed|threads|paths)\b")
BACKBONE = re.compile(r"[+~]*backbone\b(?!\.(weights|pretrained)\b)")
BARE = re.compile(r"[A-Za-z_./][\w./@+-]*")
WORDS = {"null", "true", "false", "nan", "inf"}


def scratch_words(config: DictConfig, recipe: dict[str, Any] | None) -> list[str]:
    """``mvp-prune`` for the task of a vote; its steps, ratio and zoo are yet to be added.

    Args:
        config: of ``mvp-vote``, in the process in which Hydra read the command line.
        recipe: the recipe of the zoo's backbone.
    """
    about = HydraConfig.get()
    typed = list(about.overrides.task)
    sources = [source.path for source in about.runtime.config_sources if source.provider == "command-line"]
    words = [word for path in sources for word in ("--config-dir", path)]
    words += [word for word in typed if TASK.match(word)]
    if not any(word.startswith("split.kind=") for word in words):
        words.append(f"split.kind={config.split.kind}")
    configured = OmegaConf.to_container(config.backbone.recipe, resolve=True)
    assert isinstance(configured, dict)
    if recipe is not None and _shape(recipe) != _shape(configured):
        words += recipe_words(recipe)
    else:
        words += [word for word in typed if BACKBONE.match(word)]
    return ["mvp-prune", *words, f"weights={hydra_value(f'{config.zoo}/theta0.safetensors')}"]


def _shape(recipe: dict[Any, Any]) -> dict[str, Any]:
    """What a recipe builds: with its defaults filled in, and without the units that are left."""
    return {
        "model": recipe.get("model"),
        "arguments": {"num_classes": 0, **(recipe.get("arguments") or {})},
        "replace": recipe.get("replace") or {},
        "input_size": recipe.get("input_size"),
        "in_chans": recipe.get("in_chans", 3),
    }


def recipe_words(recipe: dict[str, Any]) -> list[str]:
    """Overrides that configure a recipe's backbone at full width.

    Example:
        >>> recipe_words({"model": "resnet18", "input_size": 64})
        ['backbone=timm', 'backbone.recipe.model=resnet18', 'backbone.recipe.input_size=64']
    """
    words = ["backbone=timm"]
    for key, value in recipe.items():
        if key != "kept" and value not in (None, {}):
            words.append(f"{'++' if isinstance(value, dict) else ''}backbone.recipe.{key}={hydra_value(value)}")
    return words


def hydra_value(value: Any) -> str:
    """A plain value, written so that Hydra's command line reads it back.

    Example:
        >>> hydra_value({"conv1": ["Conv2d", {"bias": False, "padding": 1}], "of": "a, b"})
        "{conv1:[Conv2d,{bias:false,padding:1}],of:'a, b'}"
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        if BARE.fullmatch(value) and value.lower() not in WORDS:
            return value
        # Backslashes before a quote are doubled, since they would escape it; so are those before the closing quote.
        return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), value) + "'"
    return json.dumps(value)
