"""The old place of what is in ``training`` and ``fitting`` now. It goes with the next release."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

_NEW = {
    "task": "training.task",
    "mimic": "training.mimic",
    "meta_vote": "training.meta_vote",
    "adding": "training.adding",
    "once": "training.once",
    "growing": "fitting.growing",
}


class _Moved(ModuleType):
    """A module that warns, and looks names up where they are now.

    Args:
        name: the old one.
        new: of the module that has the names.
    """

    def __init__(self, name: str, new: str) -> None:
        super().__init__(name)
        self.__dict__["_new"] = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new = self.__dict__["_new"]
        warnings.warn(
            f"{self.__name__} has moved to {new}, and this name of it goes with the next release. "
            f"Write `from lightning_mvp import {name}`.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(new), name)


for _name, _home in _NEW.items():
    sys.modules[f"{__name__}.{_name}"] = _Moved(f"{__name__}.{_name}", f"lightning_mvp.{_home}")


def __getattr__(name: str) -> Any:
    if name in _NEW:
        return sys.modules[f"{__name__}.{name}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
