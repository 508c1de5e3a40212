"""Whether all that a zoo holds can be trusted: θ⁰, every entry and every list of a wave, read in full. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.entry_file import read_entry
from lightning_mvp.zoo.leftovers import leftovers
from lightning_mvp.zoo.waves import WAVES, check_waves
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class ZooCheck:
    """What was found wrong.

    Args:
        theta0: What is wrong with the pre-trained weights, or None.
        entries: For each entry by name what is wrong with it, or None.
        waves: What is wrong with lists of voters and refusals, by file; files that are right are not named.
        leftovers: The names of hidden files of killed writers, and of writers at work. They are no damage.
    """

    theta0: str | None
    entries: dict[str, str | None]
    waves: dict[str, str]
    leftovers: tuple[str, ...]

    @property
    def damaged(self) -> dict[str, str]:
        """The reason for each entry that is damaged, by name."""
        return {name: problem for name, problem in self.entries.items() if problem is not None}

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return self.theta0 is None and not self.damaged and not self.waves


def check_zoo(zoo: ModelZoo) -> ZooCheck:
    """Read θ⁰ and every entry: payload hash, names, shapes, finite values, and that all belong to this zoo.

    If θ⁰ is damaged, entries can't be held against it, and each is only checked by itself: one damaged file must not
    look like hundreds.

    Raises:
        OSError: Reading failed for a reason that is not the files', such as too many open ones.

    Example:
        >>> import tempfile, numpy as np
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2})
        >>> check_zoo(zoo).intact
        True
    """
    theta0 = None
    try:
        zoo.theta0()
    except (ValueError, OSError) as error:
        theta0 = str(error)
    entries = zoo.verify() if theta0 is None else {name: _problem_by_itself(zoo, name) for name in zoo.names}
    hidden = [path for folder in (zoo.path, zoo.path / "tasks", zoo.path / WAVES) for path in leftovers(folder)]
    return ZooCheck(theta0, entries, check_waves(zoo), tuple(str(path.relative_to(zoo.path)) for path in hidden))


def _problem_by_itself(zoo: ModelZoo, name: str) -> str | None:
    try:
        read_entry(zoo.file(name))
    except (DamagedEntryError, FileNotFoundError) as error:
        return str(error)
    return None
