"""How a zoo of a study grows: which source tasks join, in which order, and from whose vote each one starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mvp.checks import require_whole


@dataclass(frozen=True)
class Growth:
    """How a zoo grows.

    Args:
        seeds: the number of entries that the zoo begins with, the first ones of the study's zoo.
        tasks: how many of the other source tasks join, one after the other.
        order: the order in which tasks join: 0 is by their number, any other seeds a random order.
        neighbours: how many of the latest entries vote; 1 trains one net on task after task.
        steps: the optimizer steps of each new entry.
        mimic: the weight of the mimicking loss of each new entry.
        augment: how the images of the tasks that join are augmented.
        shuffle: permute the labels of all tasks that join, so that nothing true can be learned from them.
        poison: permute the labels of one task only, the one that joins after so many others; None: of no task.
        first_wave: how many tasks join in the first wave. All of them start from the vote of the seeds, so with the
            same masks. As many as ``neighbours`` freeze the masks: from then on all voters have the same ones.
    """

    seeds: int = 8
    tasks: int = 42
    order: int = 0
    neighbours: int = 8
    steps: int = 100
    mimic: float = 2.0
    augment: str = "none"
    shuffle: bool = False
    poison: int | None = None
    first_wave: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "tasks", "neighbours", "steps", "first_wave"):
            require_whole(getattr(self, name), f"`growths.….{name}`")

    def wave(self, index: int) -> int:
        """The wave of the task that joins after ``index`` others.

        Example:
            >>> [Growth().wave(index) for index in range(3)], [Growth(first_wave=2).wave(index) for index in range(3)]
            ([1, 2, 3], [1, 1, 2])
        """
        return max(1, index + 2 - self.first_wave)

    def sequence(self, sources: int) -> list[str]:
        """The names of the tasks that join, in their order.

        Raises:
            ValueError: there are not so many source tasks.
        """
        if self.seeds + self.tasks > sources:
            raise ValueError(
                f"Expected `split.sources` to be at least {self.seeds + self.tasks}, the seeds and tasks of a growth, "
                f"but got {sources}."
            )
        rest = np.arange(self.seeds, sources)
        if self.order:
            rest = np.random.default_rng(self.order).permutation(rest)
        return [f"source-{index:03d}" for index in rest[: self.tasks]]
