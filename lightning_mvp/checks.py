"""Checks of single numbers, for arguments and configurations alike. Needs no torch."""

from __future__ import annotations

from typing import Any


def is_whole(value: Any, least: float = float("-inf")) -> bool:
    """Whether it is an integer of at least ``least``; true and false are none.

    Example:
        >>> is_whole(3), is_whole(3.0), is_whole(True), is_whole(0, least=1)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether it is an integer or a finite float.

    Example:
        >>> is_number(0.5), is_number("0.5"), is_number(float("nan"))
        (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def require_whole(value: Any, called: str, least: int = 1, advice: str = "") -> None:
    """Refuse what is not an integer of at least ``least``.

    Args:
        value: what was given.
        called: its name in the message.
        least: the smallest allowed value.
        advice: sentences that follow the message.

    Raises:
        ValueError: it is no such integer.

    Example:
        >>> require_whole(0, "argument `steps`")
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `steps` to be an integer of at least 1, but got 0.
    """
    if not is_whole(value, least):
        said = f"Expected {called} to be an integer of at least {least}, but got {value!r}. {advice}"
        raise ValueError(said.rstrip())
