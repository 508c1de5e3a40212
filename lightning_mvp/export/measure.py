"""Seconds that models take on this device, measured side by side, because fewer MACs may not mean less time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

ROUNDS = (5, 11)  # how many rounds are measured: the fewest, for a slow model, and the most


@dataclass(frozen=True)
class Spread:
    """A median and the middle half around it.

    Args:
        median: The median of the measurements.
        low: The first quartile of the measurements.
        high: The third quartile of the measurements.
    """

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Spread:
        """The spread of one measurement or more.

        Example:
            >>> Spread.from_values([1.0, 2.0, 3.0, 4.0, 50.0])
            Spread(median=3.0, low=2.0, high=4.0)
        """
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Comparison:
    """The times of two ways to do the same, measured in turns.

    Args:
        batch: The number of images at once.
        seconds: The seconds of one call, by name. The second is compared with the first.
        ratio: The seconds of the first divided by those of the second, round by round. Above 1 the second is faster.
    """

    batch: int
    seconds: dict[str, Spread]
    ratio: Spread

    @property
    def throughput(self) -> dict[str, float]:
        """Images a second, by name."""
        return {name: self.batch / spread.median for name, spread in self.seconds.items()}


def alternate(runs: Mapping[str, Callable[[], object]], seconds: float, threads: int) -> dict[str, list[float]]:
    """Seconds of a call, measured in rounds in which all take turns, so that a busy machine slows all alike.

    Args:
        runs: The functions to call, by name.
        seconds: About how many seconds to spend on each. At least the lower of :data:`ROUNDS` calls are made.
        threads: The number of torch's threads while measuring.
    """
    timers = {name: Timer("run()", globals={"run": run}, num_threads=threads) for name, run in runs.items()}
    once = {name: timer.timeit(1).median for name, timer in timers.items()}  # after two calls that are not timed
    rounds = min(max(ROUNDS[0], int(seconds / max(once.values()))), ROUNDS[1])
    calls = {name: max(1, int(seconds / rounds / each)) for name, each in once.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(calls[name]).median)
    return times


def compare(runs: Mapping[str, Callable[[], object]], batch: int, seconds: float, threads: int) -> Comparison:
    """Time two ways to do the same; see :class:`Comparison`.

    Example:
        >>> one, two = nn.Linear(256, 256), nn.Linear(8, 8)
        >>> images = {256: torch.zeros(4, 256), 8: torch.zeros(4, 8)}
        >>> found = compare({"wide": lambda: one(images[256]), "narrow": lambda: two(images[8])}, 4, 0.01, 1)
        >>> list(found.seconds), found.ratio.median > 0
        (['wide', 'narrow'], True)
    """
    times = alternate(runs, seconds, threads)
    first, second = times.values()
    ratios = [one / two for one, two in zip(first, second, strict=True)]
    return Comparison(
        batch, {name: Spread.from_values(each) for name, each in times.items()}, Spread.from_values(ratios)
    )


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A function that runs the model in inference mode."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run
