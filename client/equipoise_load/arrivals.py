"""When requests are due. An open loop does not wait for answers: that is how patients arrive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum


class Arrivals(str, Enum):
    """How requests arrive."""

    POISSON = "poisson"
    CONSTANT = "constant"
    CLOSED = "closed"


def due_times(arrivals: Arrivals, rate: float, duration: float, seed: int) -> Iterator[float]:
    """Seconds since the start, ascending, below `duration`; open loop only.

    Args:
        rate: requests per second on average, > 0. Poisson: the gaps are exponential with mean 1/rate.
    """
    source = random.Random(seed)  # noqa: S311 (spreads requests, guards nothing)
    now, number = 0.0, 0
    while True:
        if arrivals is Arrivals.POISSON:
            now += source.expovariate(rate)
        else:
            now, number = number / rate, number + 1
        if now >= duration:
            return
        yield now
