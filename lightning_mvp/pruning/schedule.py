"""When units are removed, and how many: the rounds of iterative pruning."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_mvp.checks import is_number, require_whole

# A rate below this share of its peak hardly moves weights any more.
LOW_RATE = 0.05


def require_ratio(pruning_ratio: float) -> float:
    """Return ``pruning_ratio`` if it is a float in (0, 1).

    Raises:
        ValueError: it is not, naming the argument.

    Example:
        >>> require_ratio(0.8)
        0.8
        >>> require_ratio(80)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `pruning_ratio` to be a float in (0, 1), but got 80. It is the fraction that \
pruning removes: 0.8 keeps 20 %.
    """
    if not is_number(pruning_ratio) or not 0 < pruning_ratio < 1:
        raise ValueError(
            f"Expected argument `pruning_ratio` to be a float in (0, 1), but got {pruning_ratio!r}. "
            "It is the fraction that pruning removes: 0.8 keeps 20 %."
        )
    return float(pruning_ratio)


@dataclass(frozen=True)
class Schedule:
    r"""Rounds of pruning with optimizer steps between them.

    After round j of R the kept fraction is :math:`(1 - r)^{(j/R)^p}`; with p = 1 every round removes the same share
    of what is left, and R = 1 is one-shot pruning.

    Args:
        pruning_ratio: r, the fraction removed in the end, in (0, 1).
        rounds: R, how many times units are removed.
        steps_per_round: optimizer steps before each round; scores are taken over them.
        warmup_steps: steps before the first round's steps, in which no scores are taken.
        power: p of the curve; above 1 the first rounds remove less.

    Raises:
        ValueError: an argument out of its range, named.

    Example:
        >>> schedule = Schedule(pruning_ratio=0.75, rounds=2, steps_per_round=10)
        >>> [(schedule.step_of(j), schedule.kept_fraction(j)) for j in (1, 2)]
        [(10, 0.5), (20, 0.25)]
        >>> [schedule.rounds_due(step) for step in (9, 10, 20, 90)]
        [0, 1, 2, 2]
    """

    pruning_ratio: float
    rounds: int = 8
    steps_per_round: int = 10
    warmup_steps: int = 0
    power: float = 1.0

    def __post_init__(self) -> None:
        require_ratio(self.pruning_ratio)
        for name, least in (("rounds", 1), ("steps_per_round", 1), ("warmup_steps", 0)):
            require_whole(getattr(self, name), f"argument `{name}`", least)
        if not self.power > 0:
            raise ValueError(f"Expected argument `power` to be above 0, but got {self.power!r}.")

    @property
    def last_step(self) -> int:
        """The step after which the last round happens; what follows it is fine-tuning."""
        return self.step_of(self.rounds)

    def step_of(self, round_: int) -> int:
        """The number of optimizer steps done when round ``round_`` (1 to R) happens."""
        return self.warmup_steps + round_ * self.steps_per_round

    def rounds_due(self, step: int) -> int:
        """How many rounds should have happened once ``step`` steps are done."""
        return min(max((step - self.warmup_steps) // self.steps_per_round, 0), self.rounds)

    def kept_fraction(self, round_: int) -> float:
        """The fraction left after round ``round_`` (0 to R)."""
        return float((1 - self.pruning_ratio) ** ((round_ / self.rounds) ** self.power))


def require_time_for(schedule: Schedule, steps: float) -> None:
    """Refuse a schedule that is longer than the run.

    Args:
        schedule: the rounds.
        steps: the optimizer steps that the Trainer will do; may be ``inf``.

    Example:
        >>> require_time_for(Schedule(0.5, rounds=2, steps_per_round=10), steps=15)
        Traceback (most recent call last):
        ...
        ValueError: Expected a run of at least 20 optimizer steps: `warmup_steps`=0 + `rounds`=2 × \
`steps_per_round`=10, but the Trainer will do 15. Raise max_steps or max_epochs, or prune in fewer or shorter rounds.
    """
    if steps < schedule.last_step:
        raise ValueError(
            f"Expected a run of at least {schedule.last_step} optimizer steps: `warmup_steps`={schedule.warmup_steps} "
            f"+ `rounds`={schedule.rounds} × `steps_per_round`={schedule.steps_per_round}, but the Trainer will do "
            f"{steps:.0f}. Raise max_steps or max_epochs, or prune in fewer or shorter rounds."
        )


def warn_of_low_rate(rate: float, peak: float) -> None:
    """After the last round fine-tuning needs a learning rate that still moves the weights."""
    if rate < LOW_RATE * peak:
        rank_zero_warn(
            f"The learning rate is {rate:.2g} at the last pruning round, under {LOW_RATE:.0%} of its peak {peak:.2g}: "
            "there is little fine-tuning after it. Let the last round happen earlier or the rate fall later."
        )
