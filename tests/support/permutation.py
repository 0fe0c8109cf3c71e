"""Are two sets of random vectors drawn from one distribution? A permutation test on their means and variances.

Max-statistic (Westfall & Young 1993, "Resampling-Based Multiple Testing"): the largest standardised difference over all
outputs is compared with what it is when the two sets' labels are shuffled, so that correlated outputs need no
correction and no normality is assumed. p = (1 + #{shuffled ≥ observed}) / (1 + shuffles) is valid at any level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_COLUMNS = 256  # more outputs than this say nothing new, and cost


@dataclass(frozen=True)
class PValues:
    """Probability, if both sets come from one distribution, of a difference as large as the one seen; 0..1 each."""

    mean: float
    variance: float

    @property
    def smallest(self) -> float:
        return min(self.mean, self.variance)


def compare(first: NDArray[np.floating], second: NDArray[np.floating], shuffles: int = 1999, seed: int = 0) -> PValues:
    """`first [n, D]` against `second [m, D]`: rows are independent draws, columns are outputs.

    Looks at the columns that vary most over both sets together (a choice that no shuffle changes).
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected [n, D] and [m, D]; got {first.shape} and {second.shape}")
    together = np.concatenate([first, second]).astype(np.float64)
    spread = together.std(axis=0)
    columns = np.argsort(spread, kind="stable")[::-1][:_COLUMNS]
    columns = columns[spread[columns] > 0]
    if not columns.size:
        raise ValueError("no output varies: there is nothing to compare")
    centred = together[:, columns] - together[:, columns].mean(axis=0)
    labels = _shuffled_labels(len(first), len(second), shuffles, seed)
    # Squared deviations from the common mean: no shuffle changes it, so that the test is exact. Deviations from each
    # set's own mean reject true hypotheses twice as often as they should where outputs are skewed.
    return PValues(_max_statistic_p(centred, len(first), labels), _max_statistic_p(centred**2, len(first), labels))


def _shuffled_labels(n: int, m: int, shuffles: int, seed: int) -> NDArray[np.float64]:
    """`[1 + shuffles, n + m]`: 1 for members of the first set; row 0 is the truth."""
    labels = np.tile(np.repeat([1.0, 0.0], [n, m]), (1 + shuffles, 1))
    labels[1:] = np.random.default_rng(seed).permuted(labels[1:], axis=1)
    return labels


def _max_statistic_p(values: NDArray[np.float64], n: int, labels: NDArray[np.float64]) -> float:
    """p of `max over columns |difference of means| / sd`; `n` rows are the first set's, sd is over both together."""
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    standard = centred[:, spread > 0] / spread[spread > 0]
    if not standard.size:
        return 1.0
    sums = labels @ standard  # of the first set; the second's are their negative, since columns sum to 0
    statistics = np.abs(sums * (1.0 / n + 1.0 / (len(values) - n))).max(axis=1)
    # Rounding must not decide between a shuffle that reproduces the truth and the truth.
    return float((statistics >= statistics[0] * (1.0 - 1e-12)).mean())
