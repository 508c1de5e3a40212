"""Refuse values of a wrong type, or below the smallest that makes sense, before anything is loaded. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_mvp.checks import is_number, is_whole

LARGEST_SEED = 2**32 - 1  # what NumPy takes

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Rule:
    """What the values of some keys must be.

    Args:
        what: such a value, as the end of "Expected … to be".
        example: what to write for one.
        test: whether a value is one.
        keys: separated by blanks; one with ``?`` may be null. A command that does not have a key ignores it.
    """

    what: str
    example: str
    test: Test
    keys: str

    @classmethod
    def whole(cls, least: int, keys: str) -> Rule:
        return cls(f"an integer of at least {least}", "NUMBER", partial(is_whole, least=least), keys)

    @classmethod
    def one_of(cls, names: str, keys: str, own: bool = False) -> Rule:
        """One of some names, which are separated by blanks, or, with ``own``, a class of the user's own."""
        known = names.split()
        what = f"one of {', '.join(map(repr, known))}" + " or {_target_: package.Class}" * own

        def test(value: Any) -> bool:
            return (own and isinstance(value, DictConfig) and "_target_" in value) or value in known

        return cls(what, known[0], test, keys)


def is_kind(*kinds: type) -> Test:
    """A test for values of these types."""
    return lambda value: isinstance(value, kinds)


# Of numbers that need not be whole only the type is checked here, because whoever uses one checks its range.
RULES = (
    Rule.whole(-1, "trainer.num_sanity_val_steps"),
    Rule.whole(
        0,
        "seed shard data.seed split.sources split.targets split.held_out_targets split.development split.draw "
        "split.seed pruning.warmup_steps growth.first vote.reconstruct reconstruct trainer.log_every_n_steps",
    ),
    Rule.whole(
        1,
        "steps source_steps workers shards data.batch_size backbone.recipe.input_size backbone.recipe.in_chans "
        "pruning.rounds pruning.floor pruning.round_to vote.neighbours vote.round_to growth.neighbours "
        "growth.wave_size trainer.accumulate_grad_batches trainer.num_nodes trainer.timeout pretrain.steps "
        "pretrain.batch_size parent.steps parent.batch_size data.image_size? data.options.per_class_train? "
        "data.options.per_class_val? "
        "data.options.per_class_test? pruning.steps_per_round? vote.shortlist? growth.wave? growth.among? "
        "images_per_class? entries?",
    ),
    Rule.whole(2, "split.classes_per_task"),
    Rule(f"an integer of at most {LARGEST_SEED}", "NUMBER", lambda value: value <= LARGEST_SEED, "seed"),
    Rule(
        "a number",
        "NUMBER",
        is_number,
        "split.held_out_fraction pruning.power optim.learning_rate optim.weight_decay trainer.limit_val_batches "
        "data.crop? measure.seconds checkpoint_seconds mimic data.options.test_fraction? "
        "vote.temperature? vote.pruning_ratio? trainer.gradient_clip_val? "
        "pretrain.learning_rate?",
    ),
    Rule(
        "true or false",
        "true",
        is_kind(bool),
        "add growth.keep_worse dry_run overwrite cut_between_rounds new_images once data.download backbone.pretrained "
        "data.balance trainer.enable_checkpointing trainer.enable_model_summary trainer.enable_progress_bar",
    ),
    Rule(
        "text",
        "'\"…\"'",
        is_kind(str),
        "weights? backbone.weights? zoo? output? folder? checkpoint? entry? data.root? zoo_of? begins_with? "
        "superclasses? learned? growth.family?",
    ),
    Rule("a list", "[…]", is_kind(ListConfig, str), "formats"),
    Rule("a list", "[…]", is_kind(ListConfig), "methods stages pool reports measure.batch_sizes data.mean? data.std?"),
    Rule("a list of class names", "[…]", is_kind(ListConfig), "split.classes?"),
    Rule(
        "a list of numbers",
        "[…]",
        lambda value: isinstance(value, ListConfig) and all(map(is_whole, value)),
        "growth.without vote.best_of?",
    ),
    Rule(
        "a mapping", "{…}", is_kind(DictConfig), "fewer tuned trials variants growths growth.vote parent? data.mixing?"
    ),
    Rule(
        "auto or an integer of at least 1",
        "auto",
        lambda value: value == "auto" or is_whole(value, least=1),
        "threads",
    ),
    Rule(
        "auto or an integer of at least 0",
        "auto",
        lambda value: value == "auto" or is_whole(value, least=0),
        "data.num_workers",
    ),
    Rule("refuse or skip", "skip", lambda value: value in ("refuse", "skip"), "data.broken split.empty"),
    Rule("drawn, all or folders", "all", lambda value: value in ("drawn", "all", "folders"), "split.tasks"),
    # Names that are refused later, too, where torch is imported already (tests/apps/test_bad_input.py compares them).
    Rule.one_of("sgd adamw", "optim.optimizer", own=True),
    Rule.one_of("onecycle constant", "optim.schedule", own=True),
    Rule.one_of("taylor magnitude random", "pruning.criterion", own=True),
    Rule.one_of("units params macs", "pruning.ratio_of"),
    Rule.one_of("layer global", "pruning.scope"),
    Rule.one_of("leep prototypes cover latest random farthest", "vote.similarity", own=True),
    Rule.one_of("mean", "vote.merge", own=True),
    Rule.one_of("theta0 producer zero", "vote.missing"),
    Rule.one_of("ridge random", "head_init"),
    Rule.one_of("float32 bfloat16", "storage"),
    Rule.one_of("latest nearest", "growth.which"),
    Rule.one_of("source target development heldout", "split.kind"),
    Rule(
        "a number in (0, 1), the fraction that is removed",
        "0.7",
        lambda value: is_number(value) and 0 < value < 1,
        "pruning.pruning_ratio? parent.pruning_ratio?",
    ),
    Rule("theta0 or vote", "vote", lambda value: value in ("theta0", "vote"), "start"),
)
# Command → keys without which it would not know where to read or write.
GIVEN = {**dict.fromkeys(("pretrain", "prune", "compare"), "zoo folder output"), "vote": "zoo"}


def require_types(config: DictConfig, app: str) -> None:
    """Refuse a value of the wrong type, or below the least that makes sense.

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
    for rule in (*RULES, Rule("given", "PATH", lambda value: value != "", GIVEN.get(app, ""))):
        for key in rule.keys.split():
            _require(config, key.removesuffix("?"), rule, null=key.endswith("?"))


def _require(config: DictConfig, key: str, rule: Rule, null: bool) -> None:
    absent = object()
    value = OmegaConf.select(config, key, default=absent)
    if value is absent or (value is None and null) or (value is not None and rule.test(value)):
        return  # a value that has no default and is missing is asked for where it is needed
    either = f"{rule.what} or null" if null else rule.what
    shown = "null" if value is None else repr(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    raise ValueError(f"Expected `{key}` to be {either}, but got {shown}. Write {key}={rule.example}, or leave it out.")


LOGGERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


def require_logger(choices: Mapping[str, Any]) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        choices: Hydra's, group → option.

    Raises:
        ImportError: the message says what to install.
    """
    logger = str(choices.get("logger"))
    if logger in LOGGERS and not any(map(find_spec, LOGGERS[logger])):
        raise ImportError(
            f"Expected the package {LOGGERS[logger][0]} for logger={logger}, but it is not installed. "
            f"pip install 'lightning-mvp[{logger}]', or take logger=csv."
        )


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
