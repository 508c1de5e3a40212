"""Whether all that a zoo holds can be trusted: θ⁰ and every entry, read in full. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mvp.zoo.entry import DamagedEntryError
from lightning_mvp.zoo.entry_file import read_entry
from lightning_mvp.zoo.leftovers import leftovers
from lightning_mvp.zoo.summary import entry_file
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class ZooCheck:
    """What was found wrong.

    Args:
        theta0: what is wrong with the pre-trained weights, or None.
        entries: name → what is wrong with the entry, or None.
        leftovers: names of hidden files of killed writers, and of writers at work: no damage.
    """

    theta0: str | None
    entries: dict[str, str | None]
    leftovers: tuple[str, ...] = ()

    @property
    def damaged(self) -> dict[str, str]:
        """Name → reason of those that are not sound."""
        return {name: problem for name, problem in self.entries.items() if problem is not None}

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.theta0 is None and not self.damaged


def check_zoo(zoo: ModelZoo) -> ZooCheck:
    """Read θ⁰ and every entry: payload hash, names, shapes, finite values, and that all belong to this zoo.

    If θ⁰ is damaged, entries can't be held against it, and each is only checked by itself: one damaged file must not
    look like hundreds.

    Raises:
        OSError: reading failed for a reason that is not the files', such as too many open ones.

    Example:
        >>> import tempfile, numpy as np
        >>> zoo = ModelZoo.create(tempfile.mkdtemp(), None, {"w": np.zeros(2, np.float32)}, {"conv": 2})
        >>> check_zoo(zoo).sound
        True
    """
    theta0 = None
    try:
        zoo.theta0()
    except (ValueError, OSError) as error:
        theta0 = str(error)
    entries: dict[str, str | None] = {}
    for name in zoo.names:
        try:
            if theta0 is None:
                zoo[name]
            else:
                read_entry(entry_file(zoo, name))
            entries[name] = None
        except KeyError:
            pass  # removed since the names were listed
        except (DamagedEntryError, FileNotFoundError) as error:
            entries[name] = str(error)
    hidden = [path for folder in (zoo.path, zoo.path / "tasks") for path in leftovers(folder)]
    return ZooCheck(theta0, entries, tuple(str(path.relative_to(zoo.path)) for path in hidden))
