"""Volumes with error bars (Eaton-Rosen et al. 2018: each sample measures a volume; their spread is the uncertainty)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import numeric

MILLILITRE = 1000.0  # mm³


@dataclass(frozen=True)
class VolumeEstimate:
    """Millilitres: the samples' mean, their standard deviation, and an interval [low, high]."""

    mean: float
    sd: float
    low: float
    high: float


UNKNOWN = VolumeEstimate(*[float("nan")] * 4)
"""Without a spacing in mm there are no millilitres."""


def voxel_volume(spacing: tuple[float, ...]) -> float:
    """mL per voxel, from the spacing in mm."""
    return float(np.prod(spacing)) / MILLILITRE


def widened(mean: float, low: float, high: float, widening: float) -> tuple[float, float]:
    """An interval with both ends moved outwards by `widening`, all in mL; each end at least 0.

    Case 1: the conformal widening is negative, since samples spread too far, and the ends pass each other: nothing is
    left but the number between them that is nearest to the mean. It holds whatever the empty interval would have held.
    """
    low, high = low - widening, high + widening
    if low > high:
        low = high = min(max(mean, high), low)
    return max(0.0, low), max(0.0, high)


def volume_of_samples(volumes: NDArray[np.float64], level: float, widening: float) -> VolumeEstimate:
    """Sample volumes `[T]` in mL → mean, sd and an interval.

    The interval is the samples' own central `level` range, `widened` by `widening` mL (split conformal, from the
    policy; 0: uncalibrated). One sample has no spread: sd is NaN.
    """
    count = len(volumes)
    if not np.isfinite(volumes).all():  # what is not known must not become 0 mL
        return UNKNOWN
    mean = numeric.mean(volumes)
    centred = volumes - mean
    sd = math.sqrt(numeric.dot(centred, centred) / (count - 1)) if count > 1 else math.nan
    tail = (1.0 - level) / 2.0
    low, high = numeric.quantiles(volumes, (tail, 1.0 - tail))
    return VolumeEstimate(mean, sd, *widened(mean, low, high, widening))
