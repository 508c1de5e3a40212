"""Arguments as people type them: file names need no quotes of Hydra's."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lightning_mvp.apps.hydra_internals import can_parse

# A value with one of these is written in Hydra's own grammar: a list, a mapping, quotes, escapes or interpolations.
OWN_GRAMMAR = frozenset("[]{}'\"\\$")
NEVER_QUOTED = frozenset("'\"\\$")  # not even in a name of a file that is there


def quoted(arguments: Sequence[str]) -> list[str]:
    """Arguments with quotes around the values that Hydra can't read otherwise, such as file names with ``=``.

    What Hydra can read, and what isn't ``key=value``, stays as it is. Of several values with commas between them, as
    in a sweep, each is quoted.

    Example:
        >>> quoted(["checkpoint=epoch=1-step=20.ckpt", "seed=0,1", "--multirun"])
        ["checkpoint='epoch=1-step=20.ckpt'", 'seed=0,1', '--multirun']
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or NEVER_QUOTED & set(value) or can_parse(argument):
        return argument
    if os.path.exists(value):  # brackets and commas are part of its name
        parts = [f"'{value}'"]
    elif "=" in value and not OWN_GRAMMAR & set(value):
        parts = [f"'{part}'" if "=" in part else part for part in value.split(",")]
    else:
        return argument
    candidate = f"{key}={','.join(parts)}"
    return candidate if can_parse(candidate) else argument
