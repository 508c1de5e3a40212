"""What every command needs: plain containers from the configuration, a backbone, the Trainer's arguments.

Hydra decorates a command's `main` before it reads the arguments, so NumPy, torch and Lightning are imported on first
use: a cold ``--help`` costs no more than Hydra itself.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

from lightning_mvp.errors import SelfCheckError

if TYPE_CHECKING:
    import lightning as L
    from torch import nn


console = Console(soft_wrap=True)

# Errors that a user can mend are shown as one message. Any other error is a bug of ours and keeps its traceback.
FOR_PEOPLE = (ValueError, OSError, FloatingPointError, ImportError, OmegaConfBaseException, SelfCheckError)


# What launchers tell each rank of the others.
LAUNCHER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)


def forget_ranks() -> None:
    """In a sweep nobody has launched ranks yet: whatever is in the environment was left by somebody else.

    Lightning reads some of it when it is imported, so this comes first. In an allocation of SLURM's it would take this
    process for one of its tasks and wait for the others; only submitit has started them.
    """
    for name in LAUNCHER_VARIABLES if "SUBMITIT_EXECUTOR" in os.environ else (*LAUNCHER_VARIABLES, "SLURM_NTASKS"):
        os.environ.pop(name, None)


def is_first() -> bool:
    """Whether this process is the first rank, as far as the environment says, which Lightning reads likewise."""
    said = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    rank = next((number for number in said if number.isdecimal()), "0")
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return int(rank) == int(node) == 0


def is_alone() -> bool:
    """Whether nobody has started other ranks, which would wait for this one."""
    return is_first() and not {"WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"} & os.environ.keys()


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers, interpolations resolved.

    Raises:
        ValueError: a value that has no default is not given.

    Example:
        >>> plain(OmegaConf.create({"a": 1, "b": "${a}"}))
        {'a': 1, 'b': 1}
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ValueError(f"Expected `{key}` to be given, but it has no default. Add {key}=… to the command.") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def threads_of(config: DictConfig, single: bool) -> int:
    """The number of torch's threads in this process.

    Args:
        config: of the command; its ``threads`` is a number, or ``"auto"``: what ``OMP_NUM_THREADS`` says, else all
            cores that this process may use for a single job on the CPU, else one.
        single: whether this process is all that the command starts.

    Example:
        >>> threads_of(OmegaConf.create({"threads": 3}), single=True)
        3
    """
    if config.threads != "auto":
        return int(config.threads)
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told):
        return int(told)
    trainer = config.get("trainer") or {}
    alone = single and str(trainer.get("devices", 1)) == "1" and int(os.environ.get("WORLD_SIZE", "1")) == 1
    return cores() if alone and trainer.get("accelerator", "cpu") == "cpu" else 1


def cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


OmegaConf.register_new_resolver(  # for a launcher, which asks for the cores of a job before it is there
    "threads_in_a_sweep", lambda threads: 1 if threads == "auto" else threads, replace=True
)


def prepare(config: DictConfig, single: bool = False) -> None:
    """Threads, seed, a quiet Lightning, and classes importable from the present folder, before any work.

    Args:
        config: of the command.
        single: whether this process is all that the command starts.
    """
    quiet_cuda(str((config.get("trainer") or {}).get("accelerator", "auto")))
    import lightning as L
    import torch

    from lightning_mvp.fitting.fit import quiet_lightning

    torch.set_num_threads(threads_of(config, single))
    L.seed_everything(config.seed, verbose=False)
    quiet_lightning()
    if os.getcwd() not in sys.path:  # as `python -m` has it
        sys.path.insert(0, os.getcwd())


def quiet_cuda(accelerator: str) -> None:
    """Leave out, in this process, that torch finds no driver; on the CPU also that CUDA does not work.

    Args:
        accelerator: as the Trainer's.
    """
    what = "(CUDA initialization|Can't initialize NVML)" if accelerator == "cpu" else ".*Found no NVIDIA driver"
    warnings.filterwarnings("ignore", message=what)


def recipe_path(weights: str | Path) -> Path:
    """Where the recipe of a pruned parent is: beside its weights.

    Example:
        >>> str(recipe_path("backbones/parent.safetensors"))
        'backbones/parent.json'
    """
    return Path(weights).with_suffix(".json")


def recipe_beside(weights: str) -> dict[str, Any] | None:
    """The recipe of a pruned parent beside its weights, or of the zoo whose θ⁰ they are; None where there is none."""
    if Path(weights).name == "theta0.safetensors" and Path(weights).with_name("zoo.json").exists():
        from lightning_mvp.zoo.zoo import ModelZoo

        recipe = ModelZoo(Path(weights).parent).recipe
        return recipe if recipe is not None and recipe.get("kept") else None
    if not recipe_path(weights).exists():
        return None
    with suppress(ValueError):
        found = json.loads(recipe_path(weights).read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"model", "kept"} <= set(found):
            return found
    return None


def say_if_random(config: DictConfig, weights: str | None, key: str) -> None:
    """Say that weights are random where somebody may think that ``null`` means timm's."""
    if weights is None and not config.backbone.pretrained:
        console.print(
            f"{key}=null without backbone.pretrained=true: the backbone begins with random weights, drawn by "
            f"seed={config.seed}.",
            highlight=False,
        )


def require_weights(weights: str | None) -> None:
    """Refuse a file of weights that is not there.

    Raises:
        FileNotFoundError: there is no such file; the message says how to make it.
    """
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(
            f"Expected weights of the backbone at {weights}, but there is no such file. Make them with `mvp-pretrain`, "
            "name others with weights=FILE, or take timm's with weights=null backbone.pretrained=true."
        )


def backbone_of(config: DictConfig, weights: str | None) -> nn.Module:
    """The backbone that ``backbone`` names, with weights from a safetensors file, timm's own, or random ones.

    A recipe beside the weights, as ``mvp-pretrain`` writes it for a pruned parent, says how many units are left.

    Raises:
        FileNotFoundError: there is no such file; the message says how to make it.
    """
    require_weights(weights)
    import torch

    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.training.resume import architecture

    recipe = plain(config.backbone.recipe)
    own = None if weights is None else recipe_beside(weights)
    if own is not None:
        if architecture(own) != architecture(recipe) or own.get("input_size") != recipe.get("input_size"):
            raise ValueError(
                f"Expected the backbone of {weights} to be the configured one with some units removed, but "
                f"the recipe that belongs to them has {own['model']} with other arguments. Choose its backbone=."
            )
        recipe = own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # random ones are the same wherever and whenever they are drawn
        return create_backbone(recipe, pretrained=config.backbone.pretrained, weights=weights)


def callbacks_of(config: DictConfig) -> list[dict[str, Any]]:
    """What the ``callbacks`` group describes, each by its ``_target_``; a name that is null is left out."""
    return [each for each in plain(config.get("callbacks") or OmegaConf.create()).values() if each]


def own_backbone(config: DictConfig) -> nn.Module | None:
    """The backbone that ``backbone.target`` makes, for a zoo without recipe; None where there is no target.

    The configured recipe becomes that of this backbone, with the size of the zoo's images, where the zoo says it.
    """
    target = config.backbone.target
    if target is None:
        return None
    from lightning_mvp.backbones.create import create_backbone
    from lightning_mvp.backbones.targets import trust_backbone
    from lightning_mvp.zoo.zoo import ModelZoo

    seen, configured = ModelZoo(config.zoo).preprocessing or {}, config.backbone.recipe
    size, channels = seen.get("input_size", configured.input_size), len(seen.get("mean", ())) or configured.in_chans
    recipe = {"model": trust_backbone(target), "input_size": size, "in_chans": channels}
    with open_dict(config):
        config.backbone.recipe = recipe
    return create_backbone(recipe)


def trainer_options(config: DictConfig, logger: bool = True) -> dict[str, Any]:
    """The Trainer's arguments from the ``trainer`` group, which ``strategy`` fills; ``logger`` and ``callbacks``, too.

    What has a ``_target_``, such as each of ``+trainer.callbacks=[{_target_: …}]``, is made.
    """
    options: dict[str, Any] = hydra.utils.instantiate(plain(config.trainer), _convert_="all")
    own = callbacks_of(config) if logger else []
    if own or "callbacks" in options:
        given = options.get("callbacks")
        given = given if isinstance(given, list) else [] if given is None else [given]
        options["callbacks"] = [*given, *(hydra.utils.instantiate(each, _convert_="all") for each in own)]
    if str(options["devices"]) == "1" and options["strategy"] == "ddp" and options.get("num_nodes", 1) == 1:
        options["strategy"] = "auto"  # the same, without a process to start and to wait for
    if logger and "_target_" in (config.get("logger") or {}):
        options["logger"] = hydra.utils.instantiate(config.logger)
    return options


def without_auto(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Trainer that only shows whether it can be made: any device has this precision.

    To find out what ``"auto"`` is on a GPU takes a CUDA context, a few hundred MB of each process that has one.

    Example:
        >>> without_auto({"precision": "auto", "devices": 2})
        {'precision': '32-true', 'devices': 2}
    """
    return {**options, "precision": "32-true"} if options.get("precision", "auto") == "auto" else dict(options)


def trainer_of(options: Mapping[str, Any]) -> L.Trainer:
    """A Trainer of one step with these arguments, to see whether it can be made; no GPU is begun to be used for it.

    Raises:
        ValueError: Lightning refuses them; the message has what it says, and what they are.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_mvp.fitting.fit import make_trainer

    try:
        return make_trainer(1, **without_auto(options))
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        asked = ("accelerator", "devices", "strategy", "precision")
        given = ", ".join(f"trainer.{name}={options[name]}" for name in asked if name in options)
        on_cpu = options.get("accelerator", "cpu") in ("cpu", "auto")
        to_do = "Change it, or leave it out" if on_cpu else "Without that device take strategy=cpu or strategy=ddp_cpu"
        raise ValueError(
            f"Expected what `trainer` and `strategy` say to be possible here, but with {given} Lightning refuses: "
            f"{str(error).strip().rstrip('.!')}. {to_do}."
        ) from error


# Arguments of a Trainer that say where it trains and what it shows. They change nothing in the trained model.
NO_TRAINING = {"accelerator", "devices", "strategy", "num_nodes", "default_root_dir", "logger", "log_every_n_steps"}
NO_TRAINING |= {"timeout", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"}
NO_TRAINING |= {"num_sanity_val_steps", "limit_val_batches", "accumulate_grad_batches"}


def training_of(config: DictConfig, world_size: int) -> dict[str, Any]:
    """What tells one training from another: the optimizer, the *global* batch, and whatever the Trainer was told.

    The same global batch on more devices has other batch-norm statistics, and is another training.
    """
    trainer = {name: value for name, value in plain(config.trainer).items() if name not in NO_TRAINING}
    augment = config.data.augment
    return {
        **plain(config.optim),
        **trainer,
        "batch_size": config.data.batch_size * world_size * config.trainer.accumulate_grad_batches,
        "augment": plain(augment) if isinstance(augment, DictConfig) else augment,
        **{name: value for name, value in _shown(config).items() if value},
        "head_init": config.get("head_init"),
        **({"devices": world_size} if world_size > 1 else {}),
        **({"own_callbacks": callbacks_of(config)} if callbacks_of(config) else {}),
        **({"mimic": float(config.mimic)} if config.get("mimic") else {}),
    }


def _shown(config: DictConfig) -> dict[str, Any]:
    """How training images are drawn and mixed, where somebody says so."""
    return {name: value for name, value in plain(config.data).items() if name in ("balance", "mixing")}


def refuse_existing(path: Path) -> None:
    """Never overwrite silently."""
    if path.exists():
        raise FileExistsError(f"{path} exists already and is not overwritten. Name another output, or remove it.")
