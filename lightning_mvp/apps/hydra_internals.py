"""Every part of Hydra that its documentation does not give and that the commands use, and what it is for.

``tests/test_internals.py`` fails when one of them is gone. Needs no torch: it stands around a cold ``--help``, too.
"""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

# Of this exception Hydra prints the message, without a traceback, and ends the sweep's job alone.
JobError = CompactHydraException


def can_parse(argument: str) -> bool:
    """Whether Hydra's grammar can read an argument of the command line."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def is_sweep() -> bool:
    """Whether the job that runs now is one of a sweep (``-m``)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def is_parallel() -> bool:
    """Whether jobs of this sweep share a terminal: a launcher runs them in other processes."""
    return HydraConfig.get().runtime.choices.get("hydra/launcher", "basic") != "basic"


def sweep_size(hydra: DictConfig) -> int | None:
    """How many jobs a sweep will have; None with a sweeper that decides on the way.

    Args:
        hydra: the part of the configuration of that name.
    """
    if not str(hydra.sweeper.get("_target_", "")).endswith(f".{BasicSweeper.__name__}"):
        return hydra.sweeper.get("n_trials")
    asked = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*asked, *hydra.overrides.task])
        return sum(map(len, BasicSweeper.split_arguments(overrides, None)))
    except HydraException:  # such as glob(*), for which the configurations are needed; the sweeper tells what is wrong
        return None
