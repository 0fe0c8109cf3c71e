"""Intervals that cover: split conformal prediction, and the band in which its coverage must be found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from .errors import TooFewCases

Floats = NDArray[np.floating[Any]]


def cases_needed_for_level(level: float) -> int:
    """Fewest cases with `⌈(n + 1)·level⌉ ≤ n`: 9 at .9, 19 at .95."""
    return math.ceil(level / (1.0 - level) - 1e-9)


def rank(cases: int, level: float) -> int:
    """`⌈(n + 1)·level⌉`: which of n sorted numbers a new exchangeable one exceeds with probability ≤ 1 − level.

    Raises TooFewCases where that is more than n.
    """
    place = math.ceil((cases + 1) * level - 1e-9)
    if place > cases:
        raise TooFewCases(f"{level:.3g} coverage", cases, cases_needed_for_level(level))
    return place


def upper_limit(numbers: Floats, level: float) -> float:
    """The `⌈(n+1)·level⌉`-th smallest of `[n]`: a new exchangeable number lies above with probability ≤ 1 − level.

    Vovk et al. 2005; used for the false-alarm rate of an out-of-distribution score.
    """
    return float(np.sort(numbers)[rank(len(numbers), level) - 1])


def interval_widening(low: Floats, high: Floats, truth: Floats, level: float) -> float:
    """Widen `[low, high]` by this at both ends, and a new exchangeable case's truth is inside with probability ≥ level.

    `s_i = max(low_i − truth_i, truth_i − high_i)`, the `⌈(n+1)·level⌉`-th smallest (Romano et al. 2019). Negative where
    the intervals were wide already: they are narrowed.

    Args:
        low, high, truth: `[n]` in one unit (mL).
        level: 0..1.
    """
    return upper_limit(np.maximum(low - truth, truth - high), level)


def coverage_band(calibration: int, test: int, level: float, confidence: float = 0.99) -> tuple[float, float]:
    """Between which shares of `test` new cases the coverage of a correct split-conformal method lies.

    The number covered is beta-binomial: `BetaBin(test, k, n + 1 − k)`, k = ⌈(n+1)·level⌉ (Vovk 2012; Angelopoulos &
    Bates 2021, arXiv 2107.07511, §3). Central band that holds with at least `confidence`.

    Args:
        calibration: n, cases that chose the widening.
        test: cases on which coverage is counted.
    """
    place = rank(calibration, level)
    covered = betabinom(test, place, calibration + 1 - place)
    tail = (1.0 - confidence) / 2.0
    return float(covered.ppf(tail)) / test, float(covered.ppf(1.0 - tail)) / test
