"""Figures of resampled cases, from sums that are taken once per case.

A bootstrap resample is a number of times that each case occurs in it. `weights [R, n]` holds R of them; everything here
gives `[R]`, NaN where a resample has nothing to say. Weights of ones give the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from equipoise_export.calibration import metrics
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CalibrationSums:
    """What ECE, Brier score and NLL need of n cases.

    Attributes:
        bins: `[n, 3, bins]`: answers, sum of their top probability, and how many were right; 15 bins of equal width.
        brier, nll: `[n]`, sums over a case's answers.
    """

    bins: Floats
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


def calibration_sums(cases: Sequence[tuple[Floats, Floats]], exclusive: bool) -> CalibrationSums:
    """Of each case (probabilities, hits) `[m, K]`.

    Args:
        exclusive: one class is true of each; otherwise each label is a question of its own, answered by yes or no.
    """
    bins, brier, nll = [], [], []
    for given, hits in cases:
        p = given if exclusive else metrics.no_and_yes(given.reshape(-1))
        truth = hits.argmax(axis=1) if exclusive else hits.reshape(-1).astype(np.int64)
        bins.append(metrics.bin_sums(p.max(axis=1), p.argmax(axis=1) == truth, metrics.equal_widths()))
        brier.append(len(p) * metrics.brier_score(p, truth))
        nll.append(len(p) * metrics.negative_log_likelihood(p, truth))
    return CalibrationSums(np.array(bins), np.array(brier), np.array(nll))


def mean(values: Floats, weights: Floats, per: Floats | None = None) -> Floats:
    """Of `values [n]`, per case or per unit of `per [n]`; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ values / (weights.sum(axis=1) if per is None else weights @ per))
