"""Refuse values of a wrong type, or below the smallest that makes sense, before anything is loaded. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_mvp.checks import is_number, is_whole

LARGEST_SEED = 2**32 - 1  # what NumPy takes

# Key → its smallest allowed value. A command that does not have a key ignores it.
WHOLE = {
    "steps": 1,
    "source_steps": 1,
    "seed": 0,
    "threads": 1,
    "workers": 1,
    "shards": 1,
    "shard": 0,
    "data.batch_size": 1,
    "data.seed": 0,
    "backbone.recipe.input_size": 1,
    "backbone.recipe.in_chans": 1,
    "split.classes_per_task": 2,
    "split.sources": 0,
    "split.targets": 0,
    "split.held_out_targets": 0,
    "split.development": 0,
    "split.draw": 0,
    "split.seed": 0,
    "pruning.rounds": 1,
    "pruning.warmup_steps": 0,
    "pruning.floor": 1,
    "pruning.round_to": 1,
    "vote.neighbours": 1,
    "growth.neighbours": 1,
    "growth.wave_size": 1,
    "growth.first": 0,
    "vote.round_to": 1,
    "vote.reconstruct": 0,
    "reconstruct": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.num_nodes": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.num_sanity_val_steps": -1,
    "pretrain.steps": 1,
    "pretrain.batch_size": 1,
    "parent.steps": 1,
    "parent.batch_size": 1,
}
WHOLE_OR_NULL = {
    "data.image_size": 1,
    "data.options.per_class_train": 1,
    "data.options.per_class_val": 1,
    "data.options.per_class_test": 1,
    "pruning.steps_per_round": 1,
    "vote.shortlist": 1,
    "growth.wave": 1,
    "growth.among": 1,
    "images_per_class": 1,
    "entries": 1,
}
# Of these only the type is checked here: whoever uses such a value checks its range.
NUMBERS = (
    "split.held_out_fraction",
    "pruning.power",
    "optim.learning_rate",
    "optim.weight_decay",
    "trainer.limit_val_batches",
    "parent.pruning_ratio",
    "measure.seconds",
    "checkpoint_seconds",
    "mimic",
)
NUMBERS_OR_NULL = (
    "data.options.test_fraction",
    "pruning.pruning_ratio",
    "vote.temperature",
    "vote.pruning_ratio",
    "trainer.gradient_clip_val",
    "pretrain.learning_rate",
)
FLAGS = (
    "add",
    "growth.keep_worse",
    "dry_run",
    "overwrite",
    "cut_between_rounds",
    "new_images",
    "once",
    "data.download",
    "backbone.pretrained",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
)
PATHS = (  # or null; where one must be given, GIVEN says so
    "weights",
    "backbone.weights",
    "zoo",
    "output",
    "folder",
    "checkpoint",
    "entry",
    "data.root",
    "zoo_of",
    "begins_with",
    "superclasses",
    "learned",
)
LISTS = ("methods", "stages", "pool", "reports", "measure.batch_sizes", "growth.without")
MAPPINGS = ("fewer", "tuned", "trials", "variants", "growths", "growth.vote")
GIVEN = ("zoo", "folder", "output")  # of those commands that would otherwise not know where to write

Test = Callable[[Any], bool]


def require_types(config: DictConfig, app: str) -> None:
    """Refuse what is of the wrong type, or below the least that makes sense.

    Args:
        config: of a command.
        app: its name without ``mvp-``.

    Raises:
        ValueError: the first such value; the message names its key and says what to write.

    Example:
        >>> require_types(OmegaConf.create({"steps": "many"}), "prune")
        Traceback (most recent call last):
        ...
        ValueError: Expected `steps` to be an integer of at least 1, but got 'many'. Write steps=NUMBER, ...
    """
    for least_of, null in ((WHOLE, False), (WHOLE_OR_NULL, True)):
        for key, least in least_of.items():
            _require(config, key, f"an integer of at least {least}", "NUMBER", partial(is_whole, least=least), null)
    _require(config, "seed", f"an integer of at most {LARGEST_SEED}", "NUMBER", lambda v: v <= LARGEST_SEED)
    for keys, null in ((NUMBERS, False), (NUMBERS_OR_NULL, True)):
        for key in keys:
            _require(config, key, "a number", "NUMBER", is_number, null)
    for key in FLAGS:
        _require(config, key, "true or false", "true", lambda value: isinstance(value, bool))
    for key in PATHS:
        _require(config, key, "text", "'\"…\"'", lambda value: isinstance(value, str), null=True)
    _require(config, "formats", "a list", "[…]", lambda value: isinstance(value, (ListConfig, str)))
    for key in LISTS:
        _require(config, key, "a list", "[…]", lambda value: isinstance(value, ListConfig))
    for key in MAPPINGS:
        _require(config, key, "a mapping", "{…}", lambda value: isinstance(value, DictConfig))
    _require(config, "start", "theta0 or vote", "vote", lambda value: value in ("theta0", "vote"))
    _require(config, "growth.family", "text", "HASH", lambda value: isinstance(value, str), null=True)
    counts = "a list of numbers", "[…]", lambda value: isinstance(value, ListConfig) and all(map(is_whole, value))
    _require(config, "vote.best_of", *counts, null=True)
    _require(config, "growth.without", "a list of numbers", "[…]", lambda value: all(map(is_whole, value)))
    _require(config, "parent", "a mapping", "{…}", lambda value: isinstance(value, DictConfig), null=True)
    _require(config, "split.classes", "a list of class names", "[…]", lambda v: isinstance(v, ListConfig), null=True)
    for key in GIVEN if app in ("pretrain", "prune", "compare") else ("zoo",) if app == "vote" else ():
        _require(config, key, "given", "PATH", lambda value: isinstance(value, str) and bool(value))


def _require(config: DictConfig, key: str, what: str, example: str, test: Test, null: bool = False) -> None:
    absent = object()
    value = OmegaConf.select(config, key, default=absent)
    if value is absent or (value is None and null) or (value is not None and test(value)):
        return  # also what has no default and is not given: whoever needs it says so
    either = f"{what} or null" if null else what
    shown = "null" if value is None else repr(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    raise ValueError(f"Expected `{key}` to be {either}, but got {shown}. Write {key}={example}, or leave it out.")


def launcher_problem(choices: Mapping[str, Any], sweeping: bool) -> str | None:
    """Why a launcher can't do anything here, in a sentence; None if it can.

    Args:
        choices: Hydra's, group → option.
        sweeping: whether there is ``-m``.

    Example:
        >>> launcher_problem({"launcher": "joblib"}, sweeping=False)
        'Expected -m with launcher=joblib, which starts the jobs of a sweep, but got none. Add -m, ...'
    """
    launcher = choices.get("launcher", "basic")
    if launcher != "basic" and not sweeping:
        return (
            f"Expected -m with launcher={launcher}, which starts the jobs of a sweep, but got none. Add -m, or leave "
            "launcher= out."
        )
    if launcher == "slurm" and shutil.which("srun") is None:
        return (
            "Expected SLURM's commands for launcher=slurm, but there is no srun here. Start the sweep on a login node "
            "of the cluster; on this machine take launcher=submitit or launcher=joblib."
        )
    return None
