"""Figures of resampled cases, from sums that are taken once per case.

A bootstrap resample is a number of times that each case occurs in it. `weights [R, n]` holds R of them; everything here
gives `[R]`, NaN where a resample has nothing to say. Weights of ones give the figure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CalibrationSums:
    """What calibration errors, Brier score and NLL need of n cases.

    Attributes:
        bins: `[n, 3, bins]`: answers, sum of their top probability, and how many were right; 15 bins of equal width.
        residuals: `[n, cells]`: how many were right less the sum of their top probability, in cells of equal width.
        classes: `[n, K, bins]`: how often the class was true less the sum of its probability, in bins of that; over K
            where classes are exclusive, since an answer is then one about each of them.
        brier, nll: `[n]`, sums over a case's answers.
    """

    bins: Floats
    residuals: Floats
    classes: Floats
    brier: Floats
    nll: Floats

    @property
    def answers(self) -> Floats:
        """`[n]`: voxels (or 1) of each case."""
        return np.asarray(self.bins[:, 0].sum(axis=1))

    def error(self, weights: Floats) -> Floats:
        """As `metrics.expected_calibration_error`."""
        answers, confidence, right = np.moveaxis(np.tensordot(weights, self.bins, 1), 1, 0)
        return np.asarray(np.abs(right - confidence).sum(axis=1) / answers.sum(axis=1))

    def smooth_error(self, weights: Floats) -> Floats:
        """As `metrics.smooth_calibration_error`."""
        return metrics.smooth_error((weights @ self.residuals) / (weights @ self.answers)[:, None])

    def classwise_error(self, weights: Floats) -> Floats:
        """As `metrics.classwise_calibration_error`; of labels that may hold together each is a class."""
        gaps = np.abs(np.tensordot(weights, self.classes, 1)).sum(axis=(1, 2))
        return np.asarray(gaps / (weights @ self.answers))


def calibration_sums(cases: Sequence[tuple[Floats, Floats]], exclusive: bool) -> CalibrationSums:
    """Of each case (probabilities, hits) `[m, K]`.

    Args:
        exclusive: one class is true of each; otherwise each label is a question of its own, answered by yes or no.
    """
    bins, residuals, classes, brier, nll = [], [], [], [], []
    for given, hits in cases:
        p = given if exclusive else metrics.no_and_yes(given.reshape(-1))
        truth = hits.argmax(axis=1) if exclusive else hits.reshape(-1).astype(np.int64)
        top, right = p.max(axis=1), p.argmax(axis=1) == truth
        bins.append(metrics.bin_sums(top, right, metrics.equal_widths()))
        residuals.append(metrics.residual_sums(top, right))
        each = [metrics.bin_sums(q, hit, metrics.equal_widths()) for q, hit in zip(given.T, hits.T, strict=True)]
        classes.append([(of[2] - of[1]) / (len(each) if exclusive else 1) for of in each])
        brier.append(len(p) * metrics.brier_score(p, truth))
        nll.append(len(p) * metrics.negative_log_likelihood(p, truth))
    return CalibrationSums(*map(np.array, (bins, residuals, classes, brier, nll)))


def mean(values: Floats, weights: Floats, per: Floats | None = None) -> Floats:
    """Of `values [n]`, per case or per unit of `per [n]`; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ values / (weights.sum(axis=1) if per is None else weights @ per))


RESAMPLED: Mapping[str, Callable[[CalibrationSums, Floats], Floats]] = {
    "ece": CalibrationSums.error,
    "smooth_ece": CalibrationSums.smooth_error,
    "classwise_ece": CalibrationSums.classwise_error,
    "brier": lambda of, weights: mean(of.brier, weights, of.answers),
    "nll": lambda of, weights: mean(of.nll, weights, of.answers),
}
"""Those of `metrics.METRICS` that follow from the sums, `[R]`; the bins of ACE move with the cases."""
