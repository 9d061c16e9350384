"""Measurements in alternating rounds: medians, and ratios within a round.

What is compared takes turns within a round, so that other load on the machine meets all of it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any


class Rounds:
    """Measured values by (name, what) and round."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[int, float]] = {}
        self.current = 0

    def __call__(self, count: int) -> Iterator[int]:
        """Begin `count` rounds, one after the other."""
        for number in range(count):
            self.current += 1
            yield number

    def record(self, name: str, what: str, value: float) -> None:
        """Keep a value of the current round; a later one of the same round replaces it."""
        self.values.setdefault((name, what), {})[self.current] = value

    def time(self, name: str, what: str, amount: float, action: Callable[[], Any]) -> None:
        """Record `amount` per second of `action`; an amount in GB gives GB/s."""
        started = time.perf_counter()
        action()
        self.record(name, what, amount / (time.perf_counter() - started))

    def median(self, name: str, what: str) -> float | None:
        """Return the median, None if it was not measured."""
        found = self.values.get((name, what))
        return statistics.median(found.values()) if found else None

    def ratio(self, name: str, other: str, what: str) -> float:
        """Return the median of the ratios within the rounds that have both."""
        own, others = self.values[name, what], self.values[other, what]
        return statistics.median(own[number] / others[number] for number in own.keys() & others.keys())
