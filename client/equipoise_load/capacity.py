"""The highest rate that meets the objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Trial = Callable[[float], tuple[bool, dict[str, Any]]]
"""Requests per second → whether the objectives were met, and the report."""

CLOSE_ENOUGH = 1.05
"""The search ends when the lowest rate that failed is less than 5 % above the highest that held."""


@dataclass(frozen=True)
class Capacity:
    """What a search found.

    Attributes:
        rate: the highest one that held, in requests per second; 0 where none did.
        trials: (rate, held, report) in the order they were made.
    """

    rate: float
    trials: tuple[tuple[float, bool, dict[str, Any]], ...]

    @property
    def report(self) -> dict[str, Any]:
        """Of the highest rate that held, or of the last trial."""
        return next((report for rate, held, report in self.trials if held and rate == self.rate), self.trials[-1][2])


def find_capacity(trial: Trial, first: float, most: float = 100_000.0, tries: int = 16) -> Capacity:
    """Doubles the rate while it holds (or halves until it does), then bisects geometrically.

    Args:
        first: where to begin, > 0.
        most: no rate above is tried.
        tries: trials at most.
    """
    trials: list[tuple[float, bool, dict[str, Any]]] = []
    held, failed, rate = 0.0, float("inf"), first
    while len(trials) < tries and rate <= most:
        good, report = trial(rate)
        trials.append((rate, good, report))
        held, failed = (max(held, rate), failed) if good else (held, min(failed, rate))
        if held >= failed:  # a lower rate failed earlier: noise decides here, so be content with less
            held = max((r for r, ok, _ in trials if ok and r < failed), default=0.0)
        if held and failed < float("inf"):
            if failed / held < CLOSE_ENOUGH:
                break
            rate = (held * failed) ** 0.5
        else:
            rate = held * 2.0 if held else failed / 2.0
    return Capacity(held, tuple(trials))
