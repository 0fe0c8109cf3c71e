"""Fits the distance from typical images; the core computes it (`equipoise_core.ood_distance`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from equipoise_core.ood_distance import FARTHEST, OodDistance
from sklearn.covariance import LedoitWolf

_SMALLEST_SCALE = 1e-3  # a statistic that never varies among typical cases must not blow up on rounding


def fit_ood_distance(cases: Sequence[Mapping[str, float]]) -> OodDistance:
    """Location and scale by medians, covariance shrunk towards a multiple of the identity (Ledoit & Wolf 2004).

    Args:
        cases: input statistics of typical images, all with the same names. They must not be the cases that fix the
            threshold on the distance: those lie nearer than new ones.
    """
    names = tuple(sorted(cases[0]))
    table = np.array([[case[name] for name in names] for case in cases])
    location = np.median(table, axis=0)
    scale = np.maximum(1.4826 * np.median(np.abs(table - location), axis=0), _SMALLEST_SCALE)
    fitted = LedoitWolf().fit(np.clip((table - location) / scale, -FARTHEST, FARTHEST))
    return OodDistance(
        names,
        tuple(location.tolist()),
        tuple(scale.tolist()),
        tuple(fitted.location_.tolist()),
        tuple(tuple(row) for row in fitted.precision_.tolist()),
    )
