"""Figures of resampled cases, from sums that are taken once per case: equal to `calibrate.metrics` on the same cases.

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


def calibration_sums(cases: Sequence[tuple[Floats, Floats]], exclusive: bool) -> CalibrationSums:
    """Of each case (probabilities, hits) `[m, K]`.

    Args:
        exclusive: one class is true of each; otherwise each label is a question of its own, answered by yes or no.
    """
    bins, brier, nll = [], [], []
    for given, hits in cases:
        p, truth = (given, hits.argmax(axis=1)) if exclusive else _yes_or_no(given, hits)
        right = p.argmax(axis=1) == truth
        bins.append(metrics.bin_sums(p.max(axis=1), right, metrics.equal_widths()))
        rows = np.arange(len(p))
        brier.append(((p - (truth[:, None] == np.arange(p.shape[1]))) ** 2).sum())
        nll.append(-np.log(metrics.bounded(p)[rows, truth]).sum())
    return CalibrationSums(np.array(bins), np.array(brier), np.array(nll))


def _yes_or_no(given: Floats, hits: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """`[m·K, 2]` probabilities of no and yes, and which of them `[m·K]` is true."""
    p = given.reshape(-1)
    return np.stack([1.0 - p, p], axis=1), hits.reshape(-1).astype(np.int64)


def mean(values: Floats, weights: Floats) -> Floats:
    """Of `values [n]`."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def share_of(part: Floats, whole: Floats, weights: Floats) -> Floats:
    """Σ part / Σ whole, of `[n]` each; NaN where the whole is 0."""
    total = weights @ whole
    return np.asarray(np.where(total > 0, weights @ part / np.where(total > 0, total, 1.0), np.nan))


def calibration_error(sums: CalibrationSums, weights: Floats) -> Floats:
    """As `metrics.expected_calibration_error`."""
    n, _, bins = sums.bins.shape
    totals = (weights @ sums.bins.reshape(n, -1)).reshape(-1, 3, bins)
    return np.asarray(np.abs(totals[:, 2] - totals[:, 1]).sum(axis=1) / totals[:, 0].sum(axis=1))


def _ranked(values: Floats, of: Floats) -> Floats:
    """`[R, G]`: the columns of `of [R, n]` summed over cases of equal value, values rising."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    return np.asarray(np.add.reduceat(of[:, order], starts, axis=1))


def area_under_risk_coverage(score: Floats, risk: Floats, weights: Floats) -> Floats:
    """As `metrics.area_under_risk_coverage`, in closed form for cases of equal score.

    s cases of mean risk m after N cases of total risk L add `Σ_{j=1..s} (L + j·m)/(N + j)`, which is
    `s·m + (L − m·N)·(H(N+s) − H(N))` with the harmonic numbers H.
    """
    size, total = _ranked(score, weights), _ranked(score, weights * risk)
    after = size.cumsum(axis=1)
    before, risk_before = after - size, total.cumsum(axis=1) - total
    level = total / np.maximum(size, 1.0)
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, int(after.max()) + 1))]
    steps = harmonic[after.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return np.asarray((total + (risk_before - level * before) * steps).sum(axis=1) / after[:, -1])


def excess_area_under_risk_coverage(score: Floats, risk: Floats, weights: Floats) -> Floats:
    """As `metrics.excess_area_under_risk_coverage`: what is above ranking by the risk itself."""
    return area_under_risk_coverage(score, risk, weights) - area_under_risk_coverage(risk, risk, weights)


def separation(values: Floats, low: Floats, high: Floats) -> Floats:
    """As `metrics.separation`: the chance that a high case exceeds a low one, ties half.

    Args:
        values: `[n]`.
        low, high: `[R, n]`, how often each case occurs on either side.
    """
    lows, highs = _ranked(values, low), _ranked(values, high)
    pairs = lows.sum(axis=1) * highs.sum(axis=1)
    won = (highs * (lows.cumsum(axis=1) - lows / 2.0)).sum(axis=1)
    return np.asarray(np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan))
