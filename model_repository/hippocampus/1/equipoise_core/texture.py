"""Texture statistics: how strong, how sparse and how one-sided an image's detail is at four scales.

They tell kinds of image apart (stained tissue from fluorescence, a noisy or blurred scan from a clean one) by what
survives matching brightness, contrast, or the whole histogram. All are free of the scanner's intensity scale.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

SCALES = 4
_GRAIN_FLOOR = 1e-3
_FLOOR = 1e-6  # standard deviations: below it there is no detail to describe


def texture_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """Normalised, unpadded image `[C, *S]` → finite numbers by name, at scales s = 0 … 3 (pixels of 1, 2, 4, 8).

    With the band `B_s = x_s − up(x_{s+1})`, x_0 = the image standardised, x_{s+1} = x_s averaged over 2×2(×2) blocks (a
    Laplacian pyramid, Burt & Adelson 1983, with boxes), and `σ = √E[B²]`:

    - `energy_s`: ln σ.
    - `peak_s`: ln(E[B⁴]/σ⁴), ≥ 0: large where detail is rare and strong.
    - `patch_s`: ln(E[block's σ]/σ), ≤ 0: low where detail keeps to some places.
    - `spread_s`: ln(E|B|/σ), ≤ 0: low where most pixels show none.
    - `grain_s` (s < 3): ln(g_s/g_{s+1}), g_s = the median size of the mixed difference along all axes of x_s. Where
      little happens that is the sensor's grain, which is much alike in all images of a kind: blur takes it from the
      finest scale whatever the image shows (Donoho & Johnstone 1994 estimate noise so).
    - `sign_s`: ∛ of the skewness of the second differences of x_s: bright blobs on dark, or dark on bright.
    """
    x: Array = image.astype(np.float32)
    x = x - x.mean(dtype=np.float64).astype(np.float32)
    deviation = math.sqrt(float(_mean(x * x)))
    x = x / max(deviation, _FLOOR)
    found: dict[str, float] = {}
    grains = []
    for scale in range(SCALES):
        x, halved = _even(x), _halved(_even(x))
        band = x - _doubled(halved, x.shape)
        square = band * band
        variance = _mean(square)
        sigma = max(math.sqrt(variance), _FLOOR)
        found[f"energy_{scale}"] = math.log(sigma)
        found[f"peak_{scale}"] = math.log(max(_mean(square * square) / sigma**4, 1.0))
        found[f"patch_{scale}"] = _log_share(_mean(np.sqrt(_halved(square))), sigma)
        found[f"spread_{scale}"] = _log_share(_mean(np.abs(band)), sigma)
        found[f"sign_{scale}"] = _curvature_sign(x)
        grains.append(_grain(x))
        x = halved
    found |= {f"grain_{scale}": math.log(fine / coarse) for scale, (fine, coarse) in enumerate(pairwise(grains))}
    return found


def _grain(x: Array) -> float:
    """Above 0: the floor keeps images of few grey levels, whose median is 0 or one level, apart from blurred ones."""
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            x = np.diff(x, axis=axis)
    return float(np.median(np.abs(x))) / math.sqrt(2.0) ** (x.ndim - 1) + _GRAIN_FLOOR


def _mean(array: NDArray[Any]) -> float:
    # What `ndarray.mean` does, without what it does around it: small images have two dozen of these.
    return float(np.add.reduce(array, axis=None, dtype=np.float64)) / array.size if array.size else 0.0


def _log_share(part: float, whole: float) -> float:
    return math.log(min(max(part / whole, 1e-3), 1.0))


def _even(x: Array) -> Array:
    """Cuts a last odd voxel off each spatial axis; an axis of one voxel stays."""
    return x[(slice(None), *(slice(0, size - size % 2 if size > 1 else 1) for size in x.shape[1:]))]


def _halved(x: Array) -> Array:
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            before = (slice(None),) * axis
            x = (x[(*before, slice(0, None, 2))] + x[(*before, slice(1, None, 2))]) * x.dtype.type(0.5)
    return x


def _doubled(x: Array, shape: tuple[int, ...]) -> Array:
    for axis in range(1, x.ndim):
        if x.shape[axis] < shape[axis]:
            x = np.repeat(x, 2, axis=axis)
    return x


def _curvature_sign(x: Array) -> float:
    """∛ of the skewness of the sum of second differences; 0 where an image is too small or flat to have any."""
    if min(x.shape[1:]) < 3:
        return 0.0
    inner = x[(slice(None), *(slice(1, -1),) * (x.ndim - 1))]
    curvature = -2.0 * (x.ndim - 1) * inner
    for axis in range(1, x.ndim):
        for shift in (slice(0, -2), slice(2, None)):
            curvature = curvature + x[(slice(None), *(shift if a == axis else slice(1, -1) for a in range(1, x.ndim)))]
    square = curvature * curvature
    sigma = math.sqrt(_mean(square))
    return math.copysign(1.0, m := _mean(square * curvature)) * abs(m / sigma**3) ** (1 / 3) if sigma > _FLOOR else 0.0
