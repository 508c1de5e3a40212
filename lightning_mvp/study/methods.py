"""The methods that a study compares: MVP, its rivals and its controls, each with a number of steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["zoo", "generic", "once", "rounds", "dense"]


class Method(NamedTuple):
    """A method's names, and where it starts.

    Args:
        full: its name in reports.
        short: its name in a terminal of 80 columns.
        kind: ``"zoo"`` starts from the zoo's models, ``"generic"`` from one broad model, ``"once"`` from θ⁰ cut before
            the first step; ``"rounds"`` prunes while it trains, ``"dense"`` never prunes.
    """

    full: str
    short: str
    kind: Kind


# A similarity that only a study can have: the classes that a zoo task shares with the target, by name.
ORACLE = "classes"

METHODS = {
    "mvp": Method("Meta-Vote Pruning: the nearest tasks' vote, averaged weights", "Meta-Vote Pruning", "zoo"),
    "mvp_refine": Method("Meta-Vote Pruning, wider, then one Taylor round on the target", "vote, refined", "zoo"),
    "nearest": Method("nearest single pruned model", "nearest model", "zoo"),
    "random_vote": Method("vote of random neighbours", "random neighbours", "zoo"),
    "farthest_vote": Method("vote of the farthest neighbours", "farthest", "zoo"),
    "all_vote": Method("vote of all tasks, counted alike", "all tasks", "zoo"),
    "vote_theta0": Method("the vote's masks, weights from before the zoo", "vote, old weights", "zoo"),
    "vote_nearest": Method("the vote's masks, the nearest model's weights", "vote, nearest's w.", "zoo"),
    "vote_random": Method("the vote's masks, random weights", "vote, random w.", "zoo"),
    "magnitude_average": Method("magnitude masks, the neighbours' average weights", "magnitude, average", "zoo"),
    "random_average": Method("random masks, the neighbours' average weights", "random, average", "zoo"),
    "grown": Method("vote of the latest entries of a zoo grown by use", "grown by use", "zoo"),
    "parent_magnitude": Method("the zoo's parent cut once by magnitude", "parent, magnitude", "generic"),
    "generic": Method("θ⁰ pruned once on all source classes, one task's budget", "generic", "generic"),
    "generic_parent": Method(
        "the zoo's parent pruned on with all source classes, one task's budget", "generic, parent", "generic"
    ),
    "generic_zoo": Method("θ⁰ pruned once on all source classes, the whole zoo's budget", "generic, zoo", "generic"),
    "oneshot_taylor": Method("one-shot Taylor", "one-shot Taylor", "once"),
    "oneshot_magnitude": Method("one-shot magnitude (θ⁰'s magnitude mask, θ⁰'s weights)", "one-shot magnitude", "once"),
    "oneshot_reconstructed": Method(
        "one-shot Taylor, its layers reconstructed in closed form", "once, reconstr.", "once"
    ),
    "taylor": Method("iterative Taylor", "iterative Taylor", "rounds"),
    "magnitude": Method("iterative magnitude", "iterative magn.", "rounds"),
    "torch_pruning": Method("Torch-Pruning's iterative Taylor pruner", "Torch-Pruning", "rounds"),
    "dense": Method("dense fine-tuning (not pruned)", "dense, not pruned", "dense"),
}


@dataclass(frozen=True)
class Trial:
    """One method with a number of steps and perhaps other settings.

    Args:
        method: a name out of :data:`METHODS`.
        steps: the number of optimizer steps on the target.
        changes: dotted setting → value, for instance ``{"vote.temperature": 0.1}``.
        name: of the trial; the file of its record is named by it.
        targets: the number of targets on which it is run, the first ones; None: on all.
    """

    method: str
    steps: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    targets: int | None = None


def parse_method(text: str, default_steps: int) -> tuple[str, int]:
    """``"taylor@1000"`` as a method and its steps; without ``@`` it has the default's.

    Raises:
        ValueError: no such method, or steps that are no number.

    Example:
        >>> parse_method("taylor@1000", 100), parse_method("mvp", 100)
        (('taylor', 1000), ('mvp', 100))
    """
    match = re.fullmatch(r"([a-z_0-9]+?)(?:@(\d+))?", text)
    if match is None or match[1] not in METHODS:
        raise ValueError(
            f"Expected a method such as mvp or taylor@1000, out of {', '.join(METHODS)}, but got {text!r}."
        )
    return match[1], default_steps if match[2] is None else int(match[2])
