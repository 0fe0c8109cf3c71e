"""Is a recalibration worth having? What it gains on cases that it was not fitted on, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from equipoise_core.contract import Activation
from equipoise_core.recalibration import Recalibration
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.floating[Any]]
Fit = Callable[[Floats, Floats], Recalibration]
"""`[n, K]` probabilities and hits → what maps the one to the other."""

LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """How much lower the Brier score of a new case is after recalibration.

    Attributes:
        method: of recalibration.
        before: mean Brier score over cases as it is.
        mean, low, high: of the gain per case, with its interval; above 0: better.
        cases: each of another patient.
    """

    method: str
    before: float
    mean: float
    low: float
    high: float
    cases: int

    @property
    def clear(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.low > 0.0


def brier_scores(probabilities: Sequence[Floats], hits: Sequence[Floats]) -> Floats:
    """Of each case the mean over its voxels of `Σ_k (p_k − hit_k)²` (Brier 1950), `[n]`."""
    return np.array([((p - hit) ** 2).sum(axis=1).mean() for p, hit in zip(probabilities, hits, strict=True)])


def paired_gain(method: str, before: Floats, after: Floats, level: float = LEVEL) -> Gain:
    """Student's interval of the mean difference of cases, both measured on the same ones.

    Args:
        before, after: `[n]` scores, lower is better.
        level: of the two-sided interval.
    """
    gained = before - after
    n, mean = len(gained), float(gained.mean())
    reach = math.inf
    if n > 1:
        reach = float(student.ppf(0.5 + level / 2.0, n - 1)) * float(gained.std(ddof=1)) / math.sqrt(n)
    return Gain(method, float(before.mean()), mean, mean - reach, mean + reach, n)


def cross_validated_gain(
    method: str,
    fit: Fit,
    probabilities: Sequence[Floats],
    hits: Sequence[Floats],
    folds: Sequence[int],
    activation: Activation,
    level: float = LEVEL,
) -> Gain:
    """Each case recalibrated by what was fitted on the other folds.

    Args:
        probabilities, hits: `[m, K]` of each case.
        folds: of each case.
    """
    after: list[Floats] = [np.empty(0)] * len(probabilities)
    for fold in sorted(set(folds)):
        others = [index for index, each in enumerate(folds) if each != fold]
        if not others:
            return paired_gain(method, np.zeros(1), np.zeros(1), level)
        fitted = fit(*(np.concatenate([of[index] for index in others]) for of in (probabilities, hits)))
        for index, each in enumerate(folds):
            if each == fold:
                after[index] = fitted.apply(probabilities[index].T, activation).T
    return paired_gain(method, brier_scores(probabilities, hits), brier_scores(after, hits), level)
