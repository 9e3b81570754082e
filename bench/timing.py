"""Timing of contestants that take turns, and ratios of their times. Does not know what they do."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Ratio:
    """The ratio of two series of rounds."""

    number: float
    """Ratio of the medians."""
    lowest: float
    """The lowest ratio of one round."""
    highest: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Self:
        """`above / below`; both hold a value for every round."""
        rounds = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(above) / statistics.median(below), min(rounds), max(rounds))


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round.

    Contestants take turns, so that other work on the machine affects all of them; a first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in [False] + [True] * rounds:
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            if counted:
                seconds[name].append(time.perf_counter() - started)
    return seconds
