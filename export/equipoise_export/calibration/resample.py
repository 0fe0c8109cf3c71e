"""Percentile intervals by resampling patients (Efron 1979): whole patients, as cases of one are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import Floats

LEVEL = 0.95
REPETITIONS = 1000
CELLS = 4_000_000
"""Resamples are drawn in blocks of so many counts, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its percentile interval.

    Attributes:
        value: None where the figure does not exist.
        low, high: None where no resample has the figure.
        left_out: resamples without it, such as those without any wrong case.
    """

    value: float | None
    low: float | None
    high: float | None
    left_out: int


def blocks(repetitions: int, cases: int) -> Iterator[int]:
    """How many resamples of so many cases are drawn at once, until there are all."""
    block = max(1, CELLS // cases)
    return (min(block, repetitions - start) for start in range(0, repetitions, block))


def drawn(items: int, repetitions: int, random: np.random.Generator) -> Floats:
    """`[R, items]`: how often each occurs among as many as there are, drawn with replacement."""
    return random.multinomial(items, np.full(items, 1.0 / items), size=repetitions).astype(np.float64)


def estimate(value: float, draws: Floats, level: float = LEVEL) -> Estimate:
    """Percentile interval of the resamples that have the figure."""
    known = draws[np.isfinite(draws)]
    left_out = len(draws) - len(known)
    if not np.isfinite(value) or not len(known):
        return Estimate(value if np.isfinite(value) else None, None, None, left_out)
    low, high = np.quantile(known, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(value, float(low), float(high), left_out)


def estimates(figures: Sequence[Callable[[Floats], Floats]], patients: Sequence[str], seed: int = 0) -> list[Estimate]:
    """Of each figure, all on the same resamples of patients.

    Args:
        figures: of how often each case counts, `[R, n]` → `[R]`.
        patients: `[n]`.
    """
    random = np.random.default_rng(seed)
    names, of = np.unique(patients, return_inverse=True)
    weights = [drawn(len(names), count, random)[:, of] for count in blocks(REPETITIONS, len(patients))]
    once = np.ones((1, len(patients)))
    return [estimate(float(figure(once)[0]), np.concatenate([figure(each) for each in weights])) for figure in figures]
