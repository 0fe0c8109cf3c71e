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

from .numeric import dot, mean, median

Array = NDArray[np.floating[Any]]

SCALES = 4
_GRAIN_FLOOR = 1e-3
_MANY = 2**14
_ALL = (slice(None),)
FLOOR = 1e-6  # standard deviations: below it there is no detail to describe


def texture_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """Normalised, unpadded image `[C, *S]` → finite numbers by name, at scales s = 0 … 3 (pixels of 1, 2, 4, 8).

    With the band `B_s = x_s − up(x_{s+1})`, x_0 = the image standardised, x_{s+1} = x_s averaged over 2×2(×2) blocks (a
    Laplacian pyramid, Burt & Adelson 1983, with boxes), and `σ = √E[B²]`:

    - `energy_s`: ln σ.
    - `peak_s`: ln(E[B⁴]/σ⁴), ≥ 0: large where detail is rare and strong.
    - `patch_s`: ln(E[block's σ]/σ), ≤ 0: low where detail keeps to some places.
    - `spread_s`: ln(E|B|/σ), ≤ 0: low where most pixels show none.
    - `grain_s` (s < 3): ln(g_s/g_{s+1}), g_s = the median size of the mixed difference along all axes of x_s (where
      that is large, of some lines). Where
      little happens that is the sensor's grain, which is much alike in all images of a kind: blur takes it from the
      finest scale whatever the image shows (Donoho & Johnstone 1994 estimate noise so).
    - `sign_s`: ∛ of the skewness of the second differences of x_s: bright blobs on dark, or dark on bright.
    """
    return texture_of(standardised(image)[0])


def standardised(image: NDArray[np.float32]) -> tuple[Array, float]:
    """The image less its mean, over its standard deviation, in single precision; and that deviation.

    An image with a deviation below 1e-6 is constant: it becomes 0, or nearly.
    """
    x: Array = np.subtract(image, np.float32(mean(image)), order="C")
    deviation = math.sqrt(dot(x, x) / x.size)
    x /= np.float32(max(deviation, FLOOR))
    return x, deviation


def texture_of(x: Array) -> dict[str, float]:
    """The same of an image that is standardised already."""
    found: dict[str, float] = {}
    grains = []
    for scale in range(SCALES):
        x = _even(x)
        blocks = _blocks(x)
        halved = np.add.reduce(blocks, axis=0)
        halved *= np.float32(1.0 / len(blocks))
        blocks -= halved  # the band
        square = blocks * blocks
        local = np.add.reduce(square, axis=0)
        variance = mean(local) / len(blocks)
        sigma = max(math.sqrt(variance), FLOOR)
        found[f"energy_{scale}"] = math.log(sigma)
        found[f"peak_{scale}"] = math.log(max(dot(square, square) / square.size / sigma**4, 1.0))
        found[f"patch_{scale}"] = _log_share(mean(np.sqrt(local, out=local)) / math.sqrt(len(blocks)), sigma)
        found[f"spread_{scale}"] = _log_share(mean(np.abs(blocks, out=blocks)), sigma)
        found[f"sign_{scale}"] = _curvature_sign(x)
        grains.append(_grain(x))
        x = halved
    found |= {f"grain_{scale}": math.log(fine / coarse) for scale, (fine, coarse) in enumerate(pairwise(grains))}
    return found


def difference(x: Array, axis: int, step: int = 1) -> Array:
    """Of neighbours along an axis, of every `step`-th pair. (`np.diff` takes several times as long on small ones.)"""
    before, first = _ALL * axis, min(step, x.shape[axis] - 1) // 2
    return np.subtract(x[(*before, slice(first + 1, None, step))], x[(*before, slice(first, -1, step))])


def lines(x: Array, axis: int) -> Array:
    """Of a large image every so many lines along an axis, some 16,000 voxels: enough for a mean or median to 1 %."""
    across, step = 1 if axis > 1 else x.ndim - 1, _step(x)
    return x if across == axis else x[(*_ALL * across, slice(min(step, x.shape[across]) // 2, None, step))]


def _step(x: Array) -> int:
    return x.size // _MANY | 1  # odd: image sizes are even


def _grain(x: Array) -> float:
    """Above 0: the floor keeps images of few grey levels, whose median is 0 or one level, apart from blurred ones."""
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            x = difference(x, axis, _step(x))  # after the first of them there are few left
    return median(np.abs(x)) / math.sqrt(2.0) ** (x.ndim - 1) + _GRAIN_FLOOR


def _log_share(part: float, whole: float) -> float:
    return math.log(min(max(part / whole, 1e-3), 1.0))


def _even(x: Array) -> Array:
    """Cuts a last odd voxel off each spatial axis; an axis of one voxel stays. Contiguous."""
    cut = tuple(size - size % 2 if size > 1 else 1 for size in x.shape[1:])
    return x if cut == x.shape[1:] else np.ascontiguousarray(x[(*_ALL, *map(slice, cut))])


def _blocks(x: Array) -> Array:
    """`[C, *S]` of even sizes → `[4, C, *S/2]` (or 8): a copy of the image by the place of each voxel in its block.

    An axis of one voxel counts as two equal ones.
    """
    for axis in range(1, x.ndim):
        if x.shape[axis] == 1:
            x = np.repeat(x, 2, axis=axis)
    halves = [size // 2 for size in x.shape[1:]]
    split = x.reshape(len(x), *(part for half in halves for part in (half, 2)))
    axes = range(x.ndim - 1)
    places = split.transpose(*(2 + 2 * axis for axis in axes), 0, *(1 + 2 * axis for axis in axes))
    return np.array(places, order="C").reshape(-1, len(x), *halves)


def _curvature_sign(x: Array) -> float:
    """∛ of the skewness of the sum of second differences; 0 where an image is too small or flat to have any."""
    inside = len(x) * math.prod(max(size - 2, 0) for size in x.shape[1:])
    if not inside:
        return 0.0
    # Along the flat array, whose steps along an axis are constant: sums over long rows. What reaches around a corner
    # lies at the image's borders, which are set to 0 again.
    flat = x.reshape(-1)
    steps = [math.prod(x.shape[axis + 1 :]) for axis in range(1, x.ndim)]
    reach, size = steps[0], flat.size
    curvature = flat * np.float32(-2 * len(steps))
    inner = curvature[reach:-reach]
    for step in steps:
        inner += flat[reach - step : size - reach - step]
        inner += flat[reach + step : size - reach + step]
    bordered = curvature.reshape(x.shape)
    for axis in range(1, x.ndim):
        bordered[(*_ALL * axis, slice(None, None, x.shape[axis] - 1))] = 0.0
    sigma = math.sqrt(dot(curvature, curvature) / inside)
    third = dot(curvature * curvature, curvature) / inside
    return math.copysign(abs(third / sigma**3) ** (1 / 3), third) if sigma > FLOOR else 0.0
