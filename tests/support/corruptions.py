"""Corrupted images, to test what a policy does with them. `[C, *S]` in the source's intensities throughout.

Lengths are in voxels; noise is in `equipoise_lab.compare.corruptions`. Labels stay where they are, except under `flip`
and `rescale`, which move them too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_lab.compare.corruptions import Image
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.uint8]


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian smoothing along the spatial axes."""
    return np.asarray(ndimage.gaussian_filter(image, (0.0, *[sigma] * (image.ndim - 1)), mode="nearest"), np.float32)


def ghosted(image: Image, level: float, axis: int = 1, every: int = 2) -> Image:
    """Every `every`-th line of k-space along an axis is weaker by `level` (0..1): periodic motion in MR.

    Its ghosts, `every − 1` of them, have `level/every` of the image's intensity each.
    """
    spectrum = np.fft.fft(image, axis=axis)
    weight = np.ones(image.shape[axis])
    weight[every // 2 :: every] -= level
    shape = [1] * image.ndim
    shape[axis] = -1
    return np.abs(np.fft.ifft(spectrum * weight.reshape(shape), axis=axis)).astype(np.float32)


def flip(image: Image, truth: Labels, axis: int) -> tuple[Image, Labels]:
    """Mirrored along a spatial axis: left for right, or head for feet."""
    return np.ascontiguousarray(np.flip(image, 1 + axis)), np.ascontiguousarray(np.flip(truth, axis))


def rescale(image: Image, truth: Labels, factor: float) -> tuple[Image, Labels]:
    """As if voxels were `1/factor` times as large as is claimed: structures are `factor` times as large."""
    zoomed = ndimage.zoom(image, (1.0, *[factor] * truth.ndim), order=1)
    return np.asarray(zoomed, np.float32), np.asarray(ndimage.zoom(truth, factor, order=0), np.uint8)


def matched_moments(image: Image, like: Image) -> Image:
    """`image` with the mean and standard deviation of `like`."""
    return np.asarray((image - image.mean()) / max(float(image.std()), 1e-6) * like.std() + like.mean(), np.float32)


def matched_histogram(image: Image, like: Image) -> Image:
    """`image` with exactly the intensities of `like` (same size), in its own order."""
    result: NDArray[Any] = np.empty(image.size, dtype=np.float32)
    result[np.argsort(image, axis=None, kind="stable")] = np.sort(like, axis=None)
    return result.reshape(image.shape)
