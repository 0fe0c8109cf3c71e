"""Margins between which the true outline lies, from calibration cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from equipoise_core.outline import OutlineRule
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from .conformal import cases_needed_for_level, upper_limit

Margins = tuple[float, float]
"""(inner, outer) that a case needs, in mm or voxels; infinite where no margin does."""


def margins_needed(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float] | None) -> Margins:
    """The least margins by which the shrunken prediction lies in the truth, and the truth in the grown prediction.

    Args:
        predicted, truth: foreground `[*S]`.
        spacing: mm per axis; None: the margins are in voxels.
    """
    excess, missed = predicted & ~truth, truth & ~predicted
    inner = outer = 0.0
    if excess.any():
        inner = math.inf if predicted.all() else float(distance_transform_edt(predicted, spacing)[excess].max())
    if missed.any():
        outer = float(distance_transform_edt(~predicted, spacing)[missed].max()) if predicted.any() else math.inf
    return inner, outer


def scales_of(pilot: Sequence[Margins], level: float, voxel: float) -> Margins:
    """How large the margins of each side usually are: their quantile of that level over cases that need a finite one.

    Args:
        voxel: the smallest scale that means something.
    """
    finite = [margins for margins in pilot if all(map(math.isfinite, margins))]
    inner, outer = np.quantile(finite, level, axis=0) if finite else (voxel, voxel)
    return max(voxel, float(inner)), max(voxel, float(outer))


def choose_outline(scales: Margins, cases: Sequence[Margins], level: float, unit: str) -> OutlineRule | None:
    """Split conformal over both margins at once: the score of a case is the larger of its margins, each over its scale.

    Whatever the scales are, the promise holds; those of other cases see to it that neither side pays for the other.

    Args:
        scales: from cases that are not among `cases`, above 0.
        level: of new cases in which both margins hold.
        unit: of the margins, in words.

    None where there are too few cases, or where more of them than the level allows have no margin.
    """
    if len(cases) < cases_needed_for_level(level):
        return None
    limit = upper_limit((np.array(cases) / scales).max(axis=1), level)
    if not math.isfinite(limit):
        return None
    inner, outer = (float(limit * scale) for scale in scales)
    return OutlineRule(
        level,
        inner,
        outer,
        len(cases),
        f"split conformal on {len(cases)} cases: with probability at least {level:g} a new case's true outline lies "
        f"nowhere more than {outer:.3g} {unit} outside and {inner:.3g} {unit} inside the predicted one, on average "
        "over calibrations",
    )
