"""What is said about a run that prunes: its plan, each round, and how much is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_mvp.pruning.schedule import Schedule
from lightning_mvp.words import counted

SHOWN = 4  # so many names or steps stand in a sentence


def percent(fraction: float) -> str:
    """A fraction in percent, with the digits that tell it from nothing.

    Example:
        >>> percent(0.354), percent(0.0041), percent(1.0)
        ('35 %', '0.41 %', '100 %')
    """
    return f"{100 * fraction:.0f} %" if fraction >= 0.0995 or not fraction else f"{100 * fraction:.2g} %"


def shortened(words: Sequence[str]) -> str:
    """Some of the words, and how many others there are.

    Example:
        >>> shortened(["a", "b"]), shortened(list("abcdef"))
        ('a, b', 'a, b, c and 3 others')
    """
    few = len(words) <= SHOWN
    return ", ".join(words) if few else f"{', '.join(words[: SHOWN - 1])} and {len(words) - SHOWN + 1} others"


def plan_words(
    schedule: Schedule,
    steps: float,
    ratio_of: str,
    groups: int,
    whole: Mapping[str, str],
    without_units: int = 0,
    done: int = 0,
) -> str:
    """The plan of a run in one line.

    Args:
        schedule: its rounds.
        steps: the optimizer steps that it will do; ``inf`` if nobody knows.
        ratio_of: what the schedule's ratio is a fraction of.
        groups: how many groups are pruned.
        whole: groups that are not, each with the reason.
        without_units: how many layers have no units that can be removed.
        done: rounds that have happened before.

    Example:
        >>> plan_words(Schedule(0.8, 8, 15), 200, "units", 12, {"layer3.residual": "exclude"}, 2)
        'pruning removes 80 % of units in 8 rounds, after steps 15, 30, …, 120 of 200. Of 13 groups layer3.residual \
stays whole (exclude); 2 layers have no units (`groups.skipped`).'
    """
    at = [str(schedule.step_of(round_)) for round_ in range(1, schedule.rounds + 1)]
    named = ", ".join(at if len(at) <= SHOWN else [*at[:2], "…", at[-1]])
    unit = {"units": "units", "params": "parameters", "macs": "MACs"}[ratio_of]
    rounds, after = counted(len(at), "round"), "step" if len(at) == 1 else "steps"
    length = "" if steps == float("inf") else f" of {steps:.0f}"
    plan = f"pruning removes {percent(schedule.pruning_ratio)} of {unit} in {rounds}, after {after} {named}{length}."
    reasons = {why: [name for name, other in whole.items() if other == why] for why in dict.fromkeys(whole.values())}
    stay = [
        f"{shortened(names)} {'stays' if len(names) == 1 else 'stay'} whole ({why})" for why, names in reasons.items()
    ]
    told = f"Of {groups + len(whole)} groups " + ", ".join(stay) if stay else f"All {groups} groups are pruned"
    layers = counted(without_units, "layer has", "layers have")
    others = f"; {layers} no units (`groups.skipped`)" if without_units else ""
    return " ".join([*([f"Going on after round {done}:"] if done else []), plan, f"{told}{others}."])


def round_words(round_: int, rounds: int, step: int, kept: Mapping[str, float]) -> str:
    """One round in one line.

    Args:
        round_: its number, from 1.
        rounds: how many there will be.
        step: optimizer steps done.
        kept: fractions of ``units`` and ``macs`` that are left.

    Example:
        >>> round_words(3, 8, 90, {"units": 0.354, "params": 0.4, "macs": 0.58})
        'round 3 of 8 at step 90: 35 % of units, 58 % of MACs left'
    """
    left = f"{percent(kept['units'])} of units, {percent(kept['macs'])} of MACs left"
    return f"round {round_} of {rounds} at step {step}: {left}"
