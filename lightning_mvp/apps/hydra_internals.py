"""Every part of Hydra that its documentation does not give and that the commands use, and what it is for.

``tests/test_internals.py`` fails when one of them is gone. Needs no torch: it stands around a cold ``--help``, too.
"""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode

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
