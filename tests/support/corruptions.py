"""Changed images, to test what a policy does with them. `[C, *S]` in the source's intensities throughout.

What makes an image worse and leaves its label in place is in `equipoise_export.calibration.corruptions`; `flip` and
`rescale` move labels too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_export.calibration.corruptions import Image
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.uint8]


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
