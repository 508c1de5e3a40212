"""Where the time of a run goes: a clock that its parts stop and start."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REST = "everything else"


class Clock:
    """Seconds by part, each counted where it is innermost; what is in no part is `REST`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = [REST]
        self.start()

    def start(self) -> None:
        """What was before doesn't count."""
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def stop(self) -> dict[str, float]:
        """The seconds until now, by part."""
        self._turn()
        return dict(self.seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return call

    def timed_iterator(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """A function that makes iterators, the time of each item counted."""

        def iterate(*arguments: Any) -> Iterator[Any]:
            iterator = function(*arguments)
            while True:
                with self.part(name):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                yield item

        return iterate
