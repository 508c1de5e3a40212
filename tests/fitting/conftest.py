"""The zoo and the task that tests of training have, too."""

from ..training.conftest import data, target, zoo_of

__all__ = ["data", "target", "zoo_of"]
