"""Numbers in sentences. Needs no torch."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun in the singular or in the plural.

    Args:
        number: how many.
        one: the noun for one, which may go on ("entry is").
        many: the noun for any other number. None: ``one`` with an s.

    Example:
        >>> counted(1, "entry", "entries"), counted(2, "entry", "entries"), counted(0, "job")
        ('1 entry', '2 entries', '0 jobs')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def lasting(seconds: float) -> str:
    """A duration, as exact as people need it.

    Example:
        >>> [lasting(seconds) for seconds in (0.4, 75, 600, 7400, 300000)]
        ['0 s', '75 s', '10 min', '2 h 3 min', '83 h']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 60} h"
